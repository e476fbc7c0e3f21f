import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tiny_runs import SFT, weights
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import adapt_recipes as ar
from adapt_recipes import commands
from adapt_recipes.tasks.tokenizer import build_tokenizer, token_id
from adapt_recipes.training.sft import learning_rate
from adapt_recipes.training.sft_batches import LONGEST, PROMPT_TOKENS, draw_batch
from adapt_recipes.training.sft_config import PHASE_B, SftConfig


def test_result_loads_and_nothing_is_pickled(whole_sft):
    out, losses = whole_sft.out, whole_sft.reported
    assert [step for step, _ in losses] == list(range(1, 9))
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(out)) == 29
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".safetensors"}


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


def test_command(whole_sft, tmp_path):
    """From a YAML file and options, the weights that the same settings give in Python."""
    phases = json.dumps([asdict(phase) for phase in SFT.config.phases])
    (tmp_path / "tiny.yaml").write_text(f"hidden_size: 16\nlayers: 1\nwarmup_steps: 9\nphases: {phases}\n")
    chosen = ["--config", tmp_path / "tiny.yaml", "--set", "intermediate_size=32", "--set", "warmup_steps=2"]
    command = ["train", "sft", "--out", tmp_path / "out", "--seed", 3, *chosen]
    run = CliRunner().invoke(commands.app, list(map(str, command)))
    assert run.exit_code == 0, run.output
    assert "wall time" in run.output and "CPU time" in run.output
    assert "fast accuracy" in run.output and "own P(fast)" in run.output
    assert weights(tmp_path / "out") == weights(whole_sft.out)
    refused = CliRunner().invoke(commands.app, ["train", "sft", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2 and "already holds a run at step 8" in refused.output
