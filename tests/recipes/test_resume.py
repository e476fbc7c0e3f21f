"""Both trainings: a run that was stopped, interrupted or killed ends as one that was not, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_runs import RL, SFT, run, weights

from adapt_recipes.training.curve import Curve


@pytest.fixture(params=["sft", "rl"])
def whole(request):
    """A run that nothing interrupted."""
    return request.getfixturevalue(f"whole_{request.param}")


def assert_same_run(out, whole):
    assert weights(out) == weights(whole)
    assert Curve.rows(out) == Curve.rows(whole)


def test_the_seed_decides(whole, tmp_path):
    torch.manual_seed(123)  # the global state must not matter, nor be touched
    before = torch.get_rng_state()
    run(whole.recipe, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_run(tmp_path / "again", whole.out)
    config = whole.recipe.config
    whole.recipe.train(replace(config, seed=config.seed + 1), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(whole.out)


@pytest.mark.parametrize(
    ("whole", "stop"), [("sft", 1), ("sft", 4), ("sft", 7), ("rl", 1), ("rl", 4)], indirect=["whole"]
)
def test_resumed_run_is_the_same_run(whole, tmp_path, stop):
    run(whole.recipe, tmp_path, stop_after=stop)
    assert not (tmp_path / "model.safetensors").exists()
    assert run(whole.recipe, tmp_path, resume=True).reported == whole.reported[stop:]
    assert_same_run(tmp_path, whole.out)


def test_resume_after_an_interruption(whole, tmp_path):
    """The steps after the last saved state are done again, and their lines of the curve replaced."""
    recipe = whole.recipe

    def interrupt(step, value):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.train(recipe.config, tmp_path, checkpoint_every=2, on_step=interrupt)
    assert json.loads((tmp_path / "training/state.json").read_text())["step"] == 4
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"state.json", "step_000004.safetensors"}
    assert len(Curve.rows(tmp_path)) == (5 if recipe.has_curve else 0)
    run(recipe, tmp_path, resume=True, checkpoint_every=2)
    assert_same_run(tmp_path, whole.out)


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    out = shutil.copytree(whole.out, tmp_path / "out")
    spent = json.loads((out / "training/state.json").read_text())["spent"]
    again = whole.recipe.train(whole.recipe.config, out, resume=True)
    assert_same_run(out, whole.out)
    assert again.cpu_s >= spent["cpu_s"] > 0 and again.wall_s >= spent["wall_s"] > 0


@pytest.mark.parametrize(
    ("whole", "setting", "difference"),
    [
        ("sft", {"hidden_size": 32}, "hidden_size: saved 16, asked 32"),
        ("sft", {"seed": 9}, "seed: saved 3, asked 9"),
        ("rl", {"gamma": 0.4}, "gamma: saved 0.5, asked 0.4"),
    ],
    indirect=["whole"],
)
def test_another_configuration_is_no_resumption(whole, setting, difference):
    with pytest.raises(ValueError, match=rf"another configuration \({difference}\)"):
        whole.recipe.train(replace(whole.recipe.config, **setting), whole.out, resume=True)


def test_folders_that_are_refused(whole, tmp_path):
    train, config = whole.recipe.train, whole.recipe.config
    with pytest.raises(ValueError, match=rf"already holds a run at step {whole.recipe.steps}: resume it \(--resume\)"):
        train(config, whole.out)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no saved run"):
        train(config, tmp_path, resume=True)
    with pytest.raises(ValueError, match="is a file; the output must be a folder"):
        train(config, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        train(config, tmp_path / "new", checkpoint_every=0)


@pytest.mark.parametrize("recipe", [SFT, RL], ids=["sft", "rl"])
def test_there_must_be_a_run_to_resume(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("missing", "empty"):
        with pytest.raises(ValueError, match=rf"{folder} holds no run to resume: .*leave --resume out to begin"):
            recipe.train(recipe.config, tmp_path / folder, resume=True)
        assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("file", ["state.json", "step_*.safetensors"])
def test_a_saved_state_that_is_not_whole_is_named(whole, tmp_path, file):
    out = shutil.copytree(whole.out, tmp_path / "out")
    (path,) = (out / "training").glob(file)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"training/{path.name} is not whole"):
        whole.recipe.train(whole.recipe.config, out, resume=True)
    if path.suffix == ".json":
        path.write_text("[]")
        with pytest.raises(ValueError, match=r"training/state.json is not whole"):
            whole.recipe.train(whole.recipe.config, out, resume=True)


@pytest.mark.full
def test_a_killed_command_goes_on(tmp_path):
    """Killed outright in the middle; the finished run equals one that was never interrupted."""
    command = [sys.executable, "-m", "adapt_recipes.cli", "train", "rl", "--seed", "3", "--checkpoint-every", "5"]
    command += ["--set", "iterations=30", "--set", "prompts=8"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    victim = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    while len(Curve.rows(tmp_path / "out")) < 12 and victim.poll() is None:
        os.sched_yield()
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and not (tmp_path / "out/model.safetensors").exists()
    subprocess.run([*command, "--out", str(tmp_path / "out"), "--resume"], check=True, capture_output=True)
    assert_same_run(tmp_path / "out", tmp_path / "whole")
