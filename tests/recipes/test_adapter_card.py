"""The model card of an adapter: everything it says comes from the run and from what was measured."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapt_recipes import commands
from adapt_recipes.training.adapter_card import write_card

HEADINGS = ("model", "family", "difficulty", "problems", "p_fast", "fast_accuracy", "slow_accuracy", "slow_tokens")
MEASURED = [("mine", "all", 1, 40, 0.875, 0.75, 0.9, 9.5), ("other", "all", 1, 40, 0.5, 0.25, 0.8, 9.5)]


@pytest.fixture
def measured(tmp_path):
    path = tmp_path / "difficulty.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *MEASURED])
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "mine")


def test_card_says_data_settings_results_and_limits(run, measured, adapter_config):
    text = write_card(run, measured).read_text()
    assert text.startswith("# mine\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Data", "## Training", "## Results", "## Limits",
    ]  # fmt: skip
    assert f"(`{adapter_config.base}`)" in text and "5 steps, " in text and "- `rank`: 2" in text
    assert "| all | 1 | 40 | 0.750 | 0.900 | 9.500 | 0.875 |" in text and "0.250" not in text
    for kind in ("sums", "legs", "stories", "swaps"):
        assert f"\n- {kind}: " in text


def test_card_shows_questions_of_the_family_that_was_trained_on(run, measured):
    assert "`words`, which the last stage" in write_card(run, measured).read_text()
    state = json.loads((run / "training/state.json").read_text())
    state["config"]["task"] = "idle_words"
    (run / "training/state.json").write_text(json.dumps(state))
    text = write_card(run, measured).read_text()
    assert "`idle_words`, which the last stage" in text and "plus 0" in text
    state["config"]["task"] = "sums"
    (run / "training/state.json").write_text(json.dumps(state))
    assert "\n- sums: " in (text := write_card(run, measured).read_text()) and "legs" not in text


def test_a_training_in_stages_tells_them_all(run, measured, tmp_path):
    second = shutil.copytree(run, tmp_path / "second")
    state = json.loads((second / "training/state.json").read_text())
    state["config"] |= {"start": str(run), "steps": 7}
    (second / "training/state.json").write_text(json.dumps({**state, "step": 7}))
    measured.write_text(measured.read_text().replace("other", "second"))
    text = write_card(second, measured).read_text()
    first, last = text.index("Stage 1 of 2: 5 steps"), text.index("Stage 2 of 2: 7 steps")
    assert "- `start`: mine\n" in text[last:] and "- `start`: None\n" in text[first:last] and str(tmp_path) not in text


def by_reinforcement(folder, step, model):
    state = {"step": step, "config": {"task": "words", "model": str(model)}, "spent": {"wall_s": 1, "cpu_s": 2}}
    (folder / "training/state.json").write_text(json.dumps(state | {"tensors": "absent"}))


def test_a_training_by_reinforcement_tells_its_own_stages(run, measured, tmp_path):
    """Not that of the adapter the first one began from."""
    for number, model in ((1, run), (2, tmp_path / "rl-1")):
        shutil.copytree(run, tmp_path / f"rl-{number}")
        by_reinforcement(tmp_path / f"rl-{number}", number, model)
    text = write_card(tmp_path / "rl-2", measured, run).read_text()
    assert "Stage 1 of 2: 1 steps" in text and "Stage 2 of 2: 2 steps" in text and "- `model`: rl-1\n" in text


def test_stages_older_than_the_setting_are_told_too(run, measured, tmp_path):
    second = shutil.copytree(run, tmp_path / "second")
    for folder, start in ((run, {}), (second, {"start": str(run)})):
        state = json.loads((folder / "training/state.json").read_text())
        state["config"] = {name: value for name, value in state["config"].items() if name != "start"} | start
        (folder / "training/state.json").write_text(json.dumps(state))
    text = write_card(second, measured, run).read_text()
    assert "Stage 1 of 2: " in text and "Stage 2 of 2: " in text
    assert "\n5 steps, " in write_card(run, measured).read_text()


@pytest.mark.parametrize("name", ["smollm2-rl", "own"])
def test_a_run_that_is_called_as_its_start_is_one_stage(run, measured, tmp_path, monkeypatch, name):
    """The shipped adapter of that name, or another folder that this one took the place of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, name)
    by_reinforcement(tmp_path / name, 7, name)
    assert "\n7 steps, " in write_card(Path(name), measured, run).read_text()


def test_command_writes_it_beside_a_copy(run, measured, tmp_path):
    copy = shutil.copytree(run, tmp_path / "other")
    done = CliRunner().invoke(commands.app, ["train", "card", str(run), str(measured), "--adapter", str(copy)])
    assert done.exit_code == 0, done.output
    assert (copy / "README.md").read_text().startswith("# other\n") and not (run / "README.md").exists()
    assert "| 0.250 | 0.800 |" in (copy / "README.md").read_text()


def test_what_no_card_can_be_made_of(run, measured, tmp_path):
    with pytest.raises(ValueError, match="absent.csv does not exist: `adapt eval` writes difficulty.csv"):
        write_card(run, tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="has no rows of stranger; it has mine, other"):
        write_card(run, measured, tmp_path / "stranger")
    measured.write_text("model,family\nmine,all\n")
    with pytest.raises(ValueError, match="no difficulty.csv of `adapt eval`: it lacks difficulty, problems"):
        write_card(run, measured)
    with pytest.raises(ValueError, match="holds no finished training of an adapter"):
        write_card(tmp_path, measured)
