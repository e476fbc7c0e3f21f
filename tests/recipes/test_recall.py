"""The task that remembers the marked, its training, and what the shipped head is worth under a KV budget."""

import csv

import numpy as np
import pytest
import torch
from tiny_runs import interrupted_and_resumed
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import commands, keep_demo
from adapt_recipes.evaluation.keep import FULL, POLICIES, Oracle, measure
from adapt_recipes.models import load_model
from adapt_recipes.tasks import recall as task
from adapt_recipes.tasks.tokenizer import SPECIAL_TOKENS
from adapt_recipes.training import keep
from adapt_recipes.training.keep import UNSEEN_SEEDS, KeepConfig, train

TINY = {"steps": 4, "batch_size": 4, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}
TINY |= {"head_samples": 6, "head_epochs": 2, "head_batch": 3}


@pytest.fixture(scope="module")
def shipped():
    folder = ar.checkpoint_path("keep")
    model = load_model(folder)
    return ak.patch(model, ak.Modes.from_pretrained(folder)), ak.TokenScorer.from_pretrained(folder, model)


def by_policy(rows):
    return {row.policy: row for row in rows}


@pytest.mark.parametrize("marked", [True, False])
def test_samples_answer_with_the_digits_of_their_thought(marked):
    assert task.VOCABULARY[:4] == SPECIAL_TOKENS
    samples = task.draw_samples(200, (0, 1), marked)
    words = np.array(task.VOCABULARY)[samples]
    for row in words[:50]:
        asked, thought, ending = row[1:3].tolist(), row[5:45].reshape(8, 5).tolist(), row[45:].tolist()
        digits = {fused[0]: fused[1] for fused, *_ in thought}
        assert "".join(digits) == "abcdefgh" and asked[0] != asked[1]
        for fused, mark, *fillers in thought:
            place = asked.index(fused[0]) + 1 if fused[0] in asked and marked else 0
            assert mark == (f"!{place}" if place else ".") and fillers == ["."] * 3
        assert ending == ["</think>", "=", digits[asked[0]], digits[asked[1]], "<eos>"]
    assert (task.digits_right(samples) == 1).all()
    broken = samples.copy()
    broken[:, -2] = np.where(broken[:, -2] == task.VOCABULARY.index("0"), broken[:, -2] + 1, task.VOCABULARY.index("0"))
    assert (task.digits_right(broken) == 0.5).all()
    ids, start, end = task.thought_of(samples[0])
    assert task.VOCABULARY[ids[start - 1]] == "<think>" and task.VOCABULARY[ids[end]] == "</think>"


def test_a_letter_that_the_thought_left_out_is_answered_wrongly():
    samples = task.draw_samples(20, (0, 2))
    filler = task.VOCABULARY.index(".")
    thought = samples[:, task.PROMPT_TOKENS : task.PROMPT_TOKENS + task.THOUGHT]
    thought[task.wanted(samples[:, : task.PROMPT_TOKENS], thought)] = filler
    assert (task.digits_right(samples) == 0).all()


def test_batches_weigh_what_can_be_learnt():
    ids, weights = task.draw_batch(6, (3, 4))
    assert ids.shape == weights.shape == (6, FULL + 1) and (weights[:, : task.PROMPT_TOKENS] == 0).all()
    assert (weights[:, -3:-1] == 4).all() and np.allclose(weights[:, task.PROMPT_TOKENS], 0.1)
    assert np.array_equal(ids, task.draw_batch(6, (3, 4))[0])


def test_the_head_keeps_what_the_answer_needs(shipped):
    """One seed of the promise, which the full test keeps on three."""
    state = torch.get_rng_state()
    rows = by_policy(measure(*shipped, (24,), rounds=2, seed=104))
    assert torch.equal(torch.get_rng_state(), state) and tuple(rows) == POLICIES
    assert rows["full"].peak == 49 and all(row.peak == 24 for name, row in rows.items() if name != "full")
    assert all(row.kv_bytes < 0.6 * rows["full"].kv_bytes for name, row in rows.items() if name != "full")
    assert rows["full"].accuracy >= 0.97 and rows["oracle"].accuracy >= 0.93 and rows["DynTS"].accuracy >= 0.8
    assert rows["window"].accuracy <= 0.4 and rows["random"].accuracy <= 0.4


@pytest.mark.full
def test_three_unseen_seeds(shipped):
    rows = [row for seed in UNSEEN_SEEDS for row in measure(*shipped, (24,), 8, seed)]
    mean = {name: np.mean([row.accuracy for row in rows if row.policy == name]) for name in POLICIES}
    assert mean["oracle"] >= 0.93 and mean["DynTS"] >= 0.8 and max(mean["window"], mean["random"]) <= 0.4


@pytest.mark.full
def test_three_trained_seeds(tmp_path):
    found = []
    for seed in range(3):
        result, head = train(KeepConfig(seed=seed), tmp_path / str(seed))
        model = ak.patch(result.model, ak.Modes.from_pretrained(tmp_path / str(seed)))
        found += measure(model, head, (24,), 4, 107)
    mean = {name: np.mean([row.accuracy for row in found if row.policy == name]) for name in POLICIES}
    assert mean["oracle"] >= 0.93 and mean["DynTS"] >= 0.8 and max(mean["window"], mean["random"]) <= 0.4


def test_the_oracle_knows_its_rows():
    oracle, samples = Oracle(), torch.from_numpy(task.draw_samples(3, (1, 1)))
    oracle.put(samples[:, : task.PROMPT_TOKENS])
    found = []
    for step in range(task.PROMPT_TOKENS, task.PROMPT_TOKENS + task.THOUGHT):
        oracle.put(samples[:, step])
        found.append(oracle.token_scores(torch.zeros(3, 8)))
    scores = torch.stack(found, 1).view(3, 8, 5)
    assert (scores.sum((1, 2)) == 4).all() and torch.equal(scores[:, :, 0], scores[:, :, 1])
    with pytest.raises(RuntimeError, match="3 rows were streamed, and 2 are left"):
        oracle.token_scores(torch.zeros(2, 8))


def test_command_and_resume(tmp_path, monkeypatch):
    """Resumed runs end as others do, bit for bit; the control without marks has a model of its own."""
    monkeypatch.setattr(keep, "ROUNDS", 1)
    monkeypatch.setattr(keep, "UNSEEN_SEEDS", (101,))
    settings = [option for name, value in TINY.items() for option in ("--set", f"{name}={value}")]
    command = ["train", "keep", "--out", str(tmp_path / "a"), "--seed", "3", *settings]
    done = CliRunner().invoke(commands.app, command)
    assert done.exit_code == 0, done.output
    assert "wall time" in done.output and "DynTS" in done.output and "oracle" in done.output
    config = KeepConfig(seed=3, **TINY)
    interrupted_and_resumed(train, config, tmp_path / "b")
    for name in ("model.safetensors", "token_scorer.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    train(KeepConfig(seed=3, marked=False, **TINY), tmp_path / "c")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()
    refused = CliRunner().invoke(commands.app, command)
    assert refused.exit_code == 2 and "already holds a run at step 4" in refused.output


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(keep_demo, "PEAKS", (24, 32))
    done = CliRunner().invoke(commands.app, ["demo", "--keep", "--out", str(tmp_path), "--problems", "16"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "keep.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "keep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["policy"] for row in rows} == set(POLICIES)
    assert {row["peak"] for row in rows} == {"24", "32", "49"}


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in ar.checkpoint_path("keep").iterdir()}
    assert sum(files.values()) < 1_000_000
    assert {"config.json", "model.safetensors", "modes.json", "token_scorer.json", "token_scorer.safetensors"} < set(
        files
    )
