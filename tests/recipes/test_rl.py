"""`adapt train rl`: what it leaves, what it refuses, and (marked full) that it reproduces the shipped checkpoint."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import RL
from transformers import AutoTokenizer
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import commands
from adapt_recipes.config import load_config
from adapt_recipes.evaluation.compare import BIASES
from adapt_recipes.evaluation.frontier import frontier, levels, measure_modes, random_choice, spread_problems
from adapt_recipes.models import load
from adapt_recipes.training import rl, sft
from adapt_recipes.training.curve import Curve
from adapt_recipes.training.rl import train
from adapt_recipes.training.rl_config import RlConfig
from adapt_recipes.training.sft_config import Phase, SftConfig


def test_result_is_a_model_folder_like_the_one_it_came_from(whole_rl):
    out, rewards = whole_rl.out, whole_rl.reported
    start = ar.checkpoint_path("sft")
    assert [step for step, _ in rewards] == list(range(1, 7)) and all(0 <= reward <= 1 for _, reward in rewards)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".safetensors", ".csv"}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (out, start))
        # The release that wrote a file is noted in it.
        assert ours | {"transformers_version": None} == theirs | {"transformers_version": None}, name
    assert ak.Modes.from_pretrained(out) == ak.Modes.from_pretrained(start)
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)


def test_a_rollout_without_one_mode_is_no_error(tmp_path):
    """Two samples of a model that chooses: often both are fast, and slow has no accuracy in that step."""
    train(replace(RL.config, prompts=1, samples=2, rollout="auto"), tmp_path)
    rows = Curve.rows(tmp_path)
    assert len(rows) == 6 and all(0 < float(row["p_fast"]) < 1 for row in rows)
    assert any("nan" in (row["fast_accuracy"], row["slow_accuracy"]) for row in rows)


@pytest.mark.parametrize(
    ("decay_steps", "rates"), [(None, [1, 1, 1, 1]), (3, [1, 1, 2 / 3, 1 / 3]), (4, [1, 3 / 4, 1 / 2, 1 / 4])]
)
def test_learning_rate_falls_to_nothing_in_the_last_steps(monkeypatch, tmp_path, decay_steps, rates):
    """Those that the optimiser steps with, in a run of two parts."""
    used = []

    class Noted(torch.optim.Adam):
        def step(self, *arguments):
            used.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "Adam", Noted)
    config = RlConfig(iterations=4, prompts=2, samples=4, passes=2, learning_rate=1e-3, decay_steps=decay_steps)
    train(config, tmp_path, stop_after=3)
    train(config, tmp_path, resume=True)
    assert used == pytest.approx([1e-3 * rate for rate in rates])


def no_model(*_):
    raise AssertionError("the model was loaded")


def without_modes(folder):
    (folder / "modes.json").unlink()


def mode_outside(folder):
    modes = json.loads((folder / "modes.json").read_text())
    modes["modes"][1]["ids"] = [40]
    (folder / "modes.json").write_text(json.dumps(modes))


@pytest.mark.parametrize(
    ("settings", "spoil", "said"),
    [
        ({"scheme": "grppo"}, None, "scheme must be one of 'separate', 'reference'"),
        ({"rollout": "half"}, None, "rollout must be one of 'balanced', 'auto'"),
        ({"mode_weight": -1.0}, None, "mode_weight must be at least 0"),
        ({"trainer": {"gama": 1}}, None, "trainer: unknown key gama; allowed: .*gamma"),
        ({"trainer": {"seed": 1}}, None, "trainer: seed is decided by the recipe's own settings"),
        ({"trainer": {"warmup_steps": 5}}, None, "trainer: warmup_steps is decided by the recipe's own settings"),
        ({"trainer": {"weight_decay": 0.1}}, None, "trainer: weight_decay is decided by the recipe's own settings"),
        ({"trainer": {"top_entropy_quantile": 0.2}}, None, "does not honour top_entropy_quantile"),
        ({"model": "absent"}, None, "absent is neither a model folder nor a shipped checkpoint"),
        ({"fast": "<hurry>", "slow": "<think>"}, None, "'<hurry>'.*(?s:.*)add_special_tokens"),
        ({"task": "chain_sum"}, None, "the tokenizer of .*sft does not know every word of 'State the final"),
        ({}, without_modes, "brings no modes.json: say how the modes begin"),
        ({}, mode_outside, "mode 'slow' of .* opens with token 40, but its tokenizer has only 29 tokens"),
    ],
)
def test_bad_settings_fail_before_the_model_loads(monkeypatch, tmp_path, settings, spoil, said):
    monkeypatch.setattr(rl, "load_trainable", no_model)
    if spoil is not None:
        shutil.copytree(ar.checkpoint_path("sft"), tmp_path / "model")
        spoil(tmp_path / "model")
        settings = {"model": str(tmp_path / "model")}
    with pytest.raises(ValueError, match=said):
        train(replace(RL.config, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--set", "gamma=1.5"], "gamma is an accuracy, from 0 to 1, got 1.5"),
        (["--set", "decay_steps=151"], "decay_steps must be from 1 to the 150 iterations, or null, got 151"),
        (["--set", "decay_steps=0"], "decay_steps must be from 1 to the 150 iterations, or null, got 0"),
        (["--set", "samples=1"], "samples must be at least 2, got 1"),
        (["--set", "passes=3"], "passes must divide the 256 answers of a step (prompts x samples), got 3"),
        (["--scheme", "grppo"], "scheme must be one of 'separate', 'reference'"),
        (["--set", "gama=1"], "unknown key gama; allowed: model, fast"),
        (["--set", "source=1"], "unknown key source; allowed: model, fast"),
        (["--set", "trainer={a"], "--set trainer={a: the value must be YAML: while parsing a flow mapping"),
        (["--set", "model=absent"], "absent"),
        (["--model", "sft", "--set", "model=rl"], "model is given twice, the second time as --set model=rl"),
        (["--set", "seed=1", "--set", "seed=2"], "seed is given twice, the second time as --set seed=2"),
        (["--config", "absent"], "no shipped configuration is named 'absent'"),
    ],
)
def test_command_errors_are_one_line(monkeypatch, tmp_path, options, text):
    monkeypatch.setattr(rl, "load_trainable", no_model)
    done = CliRunner().invoke(commands.app, ["train", "rl", "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert text in done.output and len(done.output.strip().splitlines()) == 1


def test_missing_trl_is_one_line(tmp_path):
    script = (
        "import sys; sys.modules['trl'] = None; sys.argv = ['adapt', 'train', 'rl', '--out', sys.argv[1]]\n"
        "from adapt_recipes.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "o")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "adapt: training by reinforcement needs trl: pip install 'adapt-kernels[trl]'"
    assert not (tmp_path / "o").exists()


def test_reward_is_the_grade():
    good, bad = ar.problems(2, difficulty=3, seed=1)
    given = [vars(good), vars(bad)]
    assert rl.correct([f"<answer> {good.answer}", "<think> 1"], given) == [1.0, 0.0]
    assert rl.correct([[{"role": "assistant", "content": f"<answer> {good.answer}"}]], given[:1]) == [1.0]


def test_training_problems_are_another_stream_than_evaluated_ones():
    drawn = rl.training_problems(RlConfig(iterations=4, prompts=8))
    assert drawn == rl.training_problems(RlConfig(iterations=9, prompts=8))[:32]
    assert drawn != ar.problems(32, seed=0)


def test_second_family_trains_through_its_chat_template(tmp_path):
    """A few steps of both trainings; the prompts of the RL rollouts are those that the SFT batches taught."""
    phase = Phase(steps=2, learning_rate=1e-3, fast_rows=4, slow_rows=4, fast_decay=0.5, fast_answer_weight=1.0)
    small = SftConfig(task="chain_sum", phases=(phase,), hidden_size=16, layers=1, intermediate_size=32)
    sft.train(small, tmp_path / "sft")
    config = RlConfig(
        model=str(tmp_path / "sft"), task="chain_sum", iterations=2, prompts=2, samples=2, mode_margin_coef=None,
        scheme="adaptthink", trainer={"adaptthink_delta": 0.1},
    )  # fmt: skip
    train(config, tmp_path / "rl")
    assert AutoTokenizer.from_pretrained(tmp_path / "rl").chat_template is not None
    rows = Curve.rows(tmp_path / "rl")
    assert [row["step"] for row in rows] == ["1", "2"] and all(0 < float(row["p_fast"]) < 1 for row in rows)


def measured(folder, tasks):
    model, tokenizer = load(folder)
    modes = ak.Modes.from_pretrained(folder)
    ak.patch(model, modes)
    return measure_modes(model, tokenizer, modes, tasks, rows_per_call=1024)


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_gives_the_shipped_figures(tmp_path, seed):
    """From the shipped SFT checkpoint, with the default settings and any seed: the figures of the shipped one."""
    result = train(RlConfig(seed=seed), tmp_path / "rl")
    assert result.cpu_s < 600
    tasks = spread_problems("running_sum", 4000, seed=31)
    base, trained, shipped = (
        measured(folder, tasks) for folder in (ar.checkpoint_path("sft"), tmp_path / "rl", ar.checkpoint_path("rl"))
    )
    by_level = levels(trained)
    assert min(row.accuracy["slow"] for row in by_level) >= 0.985 and trained.correct[:, 1].mean() >= 0.99
    assert by_level[0].p_fast >= 0.9 and by_level[-1].p_fast <= 0.1
    rows = frontier(trained, BIASES)
    assert all(left.accuracy >= right.accuracy for left, right in zip(rows, rows[1:], strict=False))
    assert all(left.mean_tokens >= right.mean_tokens for left, right in zip(rows, rows[1:], strict=False))
    (at_0,), (shipped_at_0,) = frontier(trained, [0.0]), frontier(shipped, [0.0])
    assert at_0.accuracy - random_choice(base, at_0.mean_tokens) >= 0.05
    assert at_0.accuracy == pytest.approx(shipped_at_0.accuracy, abs=0.025)
    assert at_0.mean_tokens == pytest.approx(shipped_at_0.mean_tokens, abs=0.5)


@pytest.mark.full
def test_second_family_is_learnt(tmp_path):
    """About five CPU minutes: both shipped configurations of chain_sum, one after the other."""
    sft.train(load_config(SftConfig, "sft_chain_sum"), tmp_path / "sft")
    train(load_config(RlConfig, "rl_chain_sum", model=str(tmp_path / "sft")), tmp_path / "rl")
    tasks = spread_problems("chain_sum", 2000, seed=32)
    base, trained = (measured(tmp_path / name, tasks) for name in ("sft", "rl"))
    easiest, hardest = levels(base)[0], levels(base)[-1]
    assert min(easiest.accuracy.values()) >= 0.97
    assert hardest.accuracy["slow"] >= 0.85 and hardest.accuracy["fast"] <= 0.6
    assert levels(trained)[0].p_fast >= 0.9 and levels(trained)[-1].p_fast <= 0.15
    (at_0,) = frontier(trained, [0.0])
    assert at_0.accuracy - random_choice(base, at_0.mean_tokens) >= 0.02
