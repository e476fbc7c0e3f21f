"""The guess-and-check task, its training, and what the shipped scorer is worth."""

import csv
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import interrupted_and_resumed
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import commands
from adapt_recipes.evaluation.paths import SAMPLES, compare, guess_and_check, of_problems, policies
from adapt_recipes.models import load
from adapt_recipes.tasks import guess_check as task
from adapt_recipes.tasks.tokenizer import SPECIAL_TOKENS
from adapt_recipes.training import paths
from adapt_recipes.training.paths import UNSEEN_SEEDS, PathsConfig, train, train_scorer

TINY = {"steps": 4, "batch_size": 4, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}
TINY |= {"rank": 2, "scorer_steps": 2, "scorer_batch": 4}


@pytest.fixture(scope="module")
def shipped():
    folder = ar.checkpoint_path("paths")
    model, _ = load(folder)
    return ak.patch(model, ak.Modes.from_pretrained(folder)), ak.PrefixScorer.from_pretrained(folder, model)


def by_policy(rows):
    return {row.policy: row for row in rows}


def test_traces_say_in_the_end_whether_the_guess_met_the_check():
    prompts = task.draw_prompts(4000, (0, 1))
    traces = task.draw_traces(prompts, (0, 2))
    assert task.VOCABULARY[:4] == SPECIAL_TOKENS
    words = np.array(task.VOCABULARY)[traces.ids]
    for row, met in zip(words[:50], traces.met[:50], strict=True):
        numbers, check = [int(word) for word in row[1:7]], int(row[7][1:])
        guess, *sums = [int(word) for word in row[9:16]]
        assert sums == [(guess + sum(numbers[: i + 1])) % 4 for i in range(6)]
        assert met == (sums[2] == check) and row[16] == ("ok" if met else "no") and row[17] == "<eos>"
    assert abs(traces.met.mean() - 0.25) < 0.03  # four standard errors
    new = traces.ids[:, task.PROMPT_TOKENS :]
    assert np.array_equal(task.right(prompts, new), traces.met)
    for place in range(task.TRACE_TOKENS):  # any other token makes a trace wrong
        broken = new.copy()
        broken[:, place] += 1
        assert not task.right(prompts, broken)[traces.met].any()
    assert not task.right(prompts, new[:, :-1]).any()


def test_batches_weigh_the_trace_alone():
    ids, weights = task.draw_batch(6, (3, 4))
    assert (weights[:, : task.PROMPT_TOKENS] == 0).all() and (weights[:, task.PROMPT_TOKENS :] > 0).all()
    again = task.draw_batch(6, (3, 4))
    assert np.array_equal(ids, again[0]) and not np.array_equal(ids, task.draw_batch(6, (3, 5))[0])


def test_the_shipped_scorer_sees_what_the_oracle_knows(shipped):
    """One seed of the promise, which the full test keeps on three."""
    model, scorer = shipped
    state = torch.get_rng_state()
    rows = by_policy(compare(model, {104: guess_and_check(60, 104)}, policies(scorer), task.AT))
    assert torch.equal(torch.get_rng_state(), state)
    assert rows["oracle"].accuracy - rows["STOP"].accuracy <= 0.05
    assert rows["STOP"].over_low >= 0.4 and rows["random"].over_random == rows["random"].over_low == 0
    assert rows["confidence"].over_low < 0 < rows["confidence"].over_high  # log-probs say nothing here
    assert len({row.tokens - row.score_tokens for row in rows.values()}) == 1  # equal kept tokens
    assert rows["STOP"].score_tokens == SAMPLES * 5 and rows["oracle"].score_tokens == 0


def test_rows_that_live_have_the_tokens_of_the_unpruned_call(shipped):
    model, scorer = shipped
    call = guess_and_check(8, 105).arguments
    call |= {"num_return_sequences": SAMPLES, "do_sample": True, "seed": 5, "return_dict_in_generate": True}
    whole, pruned = model.generate(**call), model.generate(**call, paths=ak.Paths(4, task.AT, scorer))
    alive = torch.tensor([end != "pruned" for end in pruned.path_ends])
    assert alive.sum() == 8 * 4 and torch.equal(pruned.sequences[alive], whole.sequences[alive])


@pytest.mark.full
def test_three_unseen_seeds_and_the_control_before_the_evidence(shipped):
    model, scorer = shipped
    calls = {seed: guess_and_check(200, seed) for seed in UNSEEN_SEEDS}
    rows = by_policy(compare(model, calls, policies(scorer), task.AT))
    assert rows["oracle"].accuracy - rows["STOP"].accuracy <= 0.05 and rows["STOP"].over_low >= 0.4
    before = replace(PathsConfig(), cut=task.BEFORE)
    rows = by_policy(compare(model, calls, policies(train_scorer(model, before)), before.cut))
    assert abs(rows["STOP"].over_random) <= 0.05 and rows["oracle"].over_low >= 0.4


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_other_training_seeds_learn_it_too(tmp_path, seed):
    result, scorer = train(PathsConfig(seed=seed), tmp_path)
    model = ak.patch(result.model, ak.Modes.from_pretrained(tmp_path))
    rows = by_policy(compare(model, {107: guess_and_check(200, 107)}, policies(scorer), task.AT))
    assert rows["oracle"].accuracy - rows["STOP"].accuracy <= 0.05 and rows["STOP"].over_low >= 0.4


def test_problems_are_graded_by_their_text():
    model, tokenizer = load(ar.checkpoint_path("sft"))
    ak.patch(model, ak.Modes.from_pretrained(ar.checkpoint_path("sft")))
    tasks = ar.problems(12, 8, seed=3) * 2  # equal prompts are one group
    call = of_problems(tokenizer, tasks, mode="slow", temperature=1.5)
    scores = {name: name for name in ("random", "logprob")}
    rows = by_policy(compare(model, {3: call}, scores, 8, window=4))
    assert call.prompts == 12 and 0.6 < rows["random"].accuracy < 1
    assert rows["logprob"].over_random > 0  # errors are unlikely draws


def test_command_and_resume(tmp_path, monkeypatch):
    """Resumed runs end as others do, bit for bit, and so does a run that was finished."""
    monkeypatch.setattr(paths, "PROMPTS", 10)
    settings = [option for name, value in TINY.items() for option in ("--set", f"{name}={value}")]
    command = ["train", "paths", "--out", str(tmp_path / "a"), "--seed", "3", "--no-control", *settings]
    done = CliRunner().invoke(commands.app, command)
    assert done.exit_code == 0, done.output
    assert "wall time" in done.output and "STOP" in done.output and "oracle" in done.output
    config = PathsConfig(seed=3, **TINY)
    interrupted_and_resumed(train, config, tmp_path / "b")
    for name in ("model.safetensors", "prefix_scorer.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    refused = CliRunner().invoke(commands.app, command)
    assert refused.exit_code == 2 and "already holds a run at step 4" in refused.output
    wrong = CliRunner().invoke(commands.app, ["train", "paths", "--out", str(tmp_path / "c"), "--set", "cut=10"])
    assert wrong.exit_code == 2 and "cut must be new tokens of a trace, 1 to 9, got 10" in wrong.output


def test_demo(tmp_path):
    done = CliRunner().invoke(commands.app, ["demo", "--paths", "--out", str(tmp_path), "--problems", "12"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [row for row in rows if row["task"] == "guess_check"]
    assert {row["policy"] for row in found} == {"random", "confidence", "STOP", "oracle"}
    assert {row["keep"] for row in found} == {"1", "2", "4", "8"}
    mean = {
        name: statistics.mean(float(r["accuracy"]) for r in found if r["policy"] == name) for name in ("STOP", "random")
    }
    assert mean["STOP"] > mean["random"] + 0.3
    for arguments, text in ((["--paths", "--problems", "1"], "at least 2"), (["--paths", "--keep"], "choose one")):
        refused = CliRunner().invoke(commands.app, ["demo", *arguments])
        assert refused.exit_code == 2 and text in refused.output


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in ar.checkpoint_path("paths").iterdir()}
    assert sum(files.values()) < 1_000_000
    assert {"config.json", "model.safetensors", "modes.json", "prefix_scorer.json", "prefix_scorer.safetensors"} < set(
        files
    )
