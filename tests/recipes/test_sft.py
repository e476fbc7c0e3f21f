import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import adapt_recipes as ar
from adapt_recipes import commands
from adapt_recipes.tasks.tokenizer import build_tokenizer, token_id
from adapt_recipes.training.sft import learning_rate, train
from adapt_recipes.training.sft_batches import LONGEST, PROMPT_TOKENS, draw_batch
from adapt_recipes.training.sft_config import PHASE_A, PHASE_B, SftConfig

TINY = SftConfig(
    seed=3,
    phases=(replace(PHASE_A, steps=4, fast_rows=4, slow_rows=4), replace(PHASE_B, steps=4, fast_rows=6, slow_rows=2)),
    hidden_size=16,
    layers=1,
    intermediate_size=32,
    warmup_steps=2,
)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "whole"
    losses = []
    train(TINY, out, on_step=lambda step, loss: losses.append((step, loss)))
    return out, losses


def test_same_seed_same_weights(whole, tmp_path):
    torch.manual_seed(123)  # the global state must not matter, nor be touched
    before = torch.get_rng_state()
    train(TINY, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(tmp_path / "again") == weights(whole[0])
    train(replace(TINY, seed=4), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(whole[0])


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_run_is_bit_equal(whole, tmp_path, stop):
    train(TINY, tmp_path, stop_after=stop)
    assert not (tmp_path / "model.safetensors").exists()
    losses = []
    train(TINY, tmp_path, resume=True, on_step=lambda step, loss: losses.append((step, loss)))
    assert losses == whole[1][stop:]
    assert weights(tmp_path) == weights(whole[0])


def test_resume_after_an_interruption(whole, tmp_path):
    def interrupt(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, checkpoint_every=2, on_step=interrupt)
    state = json.loads((tmp_path / "training/state.json").read_text())
    assert state["step"] == 4
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"state.json", "step_000004.safetensors"}
    train(TINY, tmp_path, resume=True, checkpoint_every=2)
    assert weights(tmp_path) == weights(whole[0])


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    train(TINY, tmp_path)
    before = weights(tmp_path)
    spent = json.loads((tmp_path / "training/state.json").read_text())["spent"]
    again = train(TINY, tmp_path, resume=True)
    assert weights(tmp_path) == before
    assert again.cpu_s >= spent["cpu_s"] > 0 and again.wall_s >= spent["wall_s"] > 0


def test_result_loads_and_nothing_is_pickled(whole):
    out, losses = whole
    assert [step for step, _ in losses] == list(range(1, 9))
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(out)) == 29
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_errors(whole, tmp_path):
    with pytest.raises(ValueError, match=r"already holds a run at step 8: resume it \(--resume\)"):
        train(TINY, whole[0])
    with pytest.raises(ValueError, match=r"another configuration \(hidden_size: saved 16, asked 32\)"):
        train(replace(TINY, hidden_size=32), whole[0], resume=True)
    with pytest.raises(ValueError, match=r"another configuration \(seed: saved 3, asked 9\)"):
        train(replace(TINY, seed=9), whole[0], resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no saved run"):
        train(TINY, tmp_path, resume=True)
    with pytest.raises(ValueError, match="is a file; the output must be a folder"):
        train(TINY, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        train(TINY, tmp_path / "new", checkpoint_every=0)


def test_learning_rate_schedule():
    config = SftConfig()
    assert learning_rate(config, 0) == (config.phases[0], 3e-3 / 50)
    assert learning_rate(config, 49)[1] == pytest.approx(3e-3)
    assert learning_rate(config, config.phases[0].steps - 1)[1] == pytest.approx(0.05 * 3e-3, rel=1e-2)
    assert learning_rate(config, config.phases[0].steps)[0] is config.phases[1]
    with pytest.raises(ValueError, match=f"step must be below {config.total_steps}"):
        learning_rate(config, config.total_steps)


def test_batches_hold_graded_answers():
    ids, loss_weights = draw_batch(PHASE_B, seed=0, step=5)
    assert ids.shape == loss_weights.shape == (112, LONGEST)
    tokenizer = build_tokenizer()
    for row, weight in zip(ids, loss_weights, strict=True):
        prompt = tokenizer.decode(row[:PROMPT_TOKENS], skip_special_tokens=True)
        digits = [int(word) for word in prompt.split() if word not in (".", "?")]
        problem = ar.Problem(prompt, str(sum(digits) % 10), len(digits) - 1)
        response = row[PROMPT_TOKENS:]
        assert ar.grade(problem, tokenizer.decode(response))
        assert tokenizer(prompt)["input_ids"] == row[:PROMPT_TOKENS].tolist()
        assert (weight[:PROMPT_TOKENS] == 0).all()
        assert ((weight[PROMPT_TOKENS:] > 0) == (response != token_id("<pad>"))).all()


def test_mode_tokens_weigh_the_same_at_each_difficulty():
    """The expected loss weight of <answer> and <think> must agree per difficulty: that is what makes the odds even."""
    total = np.zeros((2, 9))
    for step in range(400):
        ids, loss_weights = draw_batch(PHASE_B, seed=1, step=step)
        prompts = ids[:, :PROMPT_TOKENS]
        difficulty = ((prompts >= token_id("+0")) & (prompts <= token_id("+9"))).sum(axis=1)
        slow = (ids[:, PROMPT_TOKENS] == token_id("<think>")).astype(int)
        np.add.at(total, (slow, difficulty), loss_weights[:, PROMPT_TOKENS])
    assert total[0, 1:] == pytest.approx(total[1, 1:], rel=0.15)


def test_command(whole, tmp_path):
    """From a YAML file and options, the weights that the same settings give in Python."""
    phases = json.dumps([asdict(phase) for phase in TINY.phases])
    (tmp_path / "tiny.yaml").write_text(f"hidden_size: 16\nlayers: 1\nwarmup_steps: 9\nphases: {phases}\n")
    chosen = ["--config", tmp_path / "tiny.yaml", "--set", "intermediate_size=32", "--set", "warmup_steps=2"]
    command = ["train", "sft", "--out", tmp_path / "out", "--seed", 3, *chosen]
    run = CliRunner().invoke(commands.app, list(map(str, command)))
    assert run.exit_code == 0, run.output
    assert "wall time" in run.output and "CPU time" in run.output
    assert "fast accuracy" in run.output and "own P(fast)" in run.output
    assert weights(tmp_path / "out") == weights(whole[0])
    refused = CliRunner().invoke(commands.app, ["train", "sft", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2 and "already holds a run at step 8" in refused.output
