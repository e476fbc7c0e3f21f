"""`adapt eval` end to end."""

import csv
import json

import pytest
from typer.testing import CliRunner

import adapt_recipes as ar
from adapt_recipes import commands


def run(*arguments):
    return CliRunner().invoke(commands.app, ["eval", *map(str, arguments)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_command_compares_models(tmp_path):
    (tmp_path / "eval.yaml").write_text("models: [sft, rl]\nproblems: 160\nbiases: [-4, 0, 4]\n")
    done = run("--config", tmp_path / "eval.yaml", "--out", tmp_path / "out", "--seed", 23)
    assert done.exit_code == 0, done.output
    rows = rows_of(tmp_path / "out/frontier.csv")
    assert list(rows[0]) == ["model", "bias", "p_fast", "accuracy", "mean_tokens", "random_choice", "gain_error"]
    assert [(row["model"], float(row["bias"])) for row in rows] == [(m, b) for m in ("sft", "rl") for b in (-4, 0, 4)]
    for model in ("sft", "rl"):
        shares = [float(row["p_fast"]) for row in rows if row["model"] == model]
        assert shares == sorted(shares) and 0 < shares[0] < shares[-1] < 1
    assert all(0 <= float(row["gain_error"]) < 0.1 for row in rows)
    by_difficulty = rows_of(tmp_path / "out/difficulty.csv")
    assert [(row["model"], int(row["difficulty"]), int(row["problems"])) for row in by_difficulty] == [
        (model, k, 20) for model in ("sft", "rl") for k in range(1, 9)
    ]
    assert all(float(row["slow_accuracy"]) >= 0.9 and float(row["fast_tokens"]) == 3 for row in by_difficulty)
    picture = (tmp_path / "out/frontier.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_command_grades_free_form_answers(tmp_path):
    """Any folder on problems from a file; the answers of this one are digits."""
    tasks = ar.problems(12, seed=24)
    lines = [{"prompt": task.prompt, "answer": f"{task.answer}.0", "difficulty": task.difficulty} for task in tasks]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, lines)))
    folder = ar.checkpoint_path("sft")
    command = ("--model", folder, "--task", "math", "--data", tmp_path / "problems.jsonl", "--bias", 0)
    done = run(*command, "--fast", "<answer>", "--slow", "<think>", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = rows_of(tmp_path / "out/difficulty.csv")
    assert sum(int(row["problems"]) for row in rows) == 12
    assert all(float(row["slow_accuracy"]) == 1 for row in rows)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "absent"], "absent is neither a model folder nor a shipped checkpoint"),
        (["--task", "chess"], "no task family is named 'chess'"),
        (["--task", "chain_sum", "--model", "rl"], "rl does not know every word of 'State the final answer"),
        (["--problems", 0], "problems must be at least 1, got 0"),
        (["--task", "math"], "the task family math needs a data file (--data)"),
        (["--data", "x.jsonl"], "the task family running_sum takes no data file"),
        (["--fast", "<answer>"], "--fast and --slow go together"),
        (["--config", "absent.yaml"], "configuration absent.yaml does not exist"),
    ],
)
def test_errors_are_one_line(tmp_path, options, text):
    done = run("--out", tmp_path / "out", "--problems", 8, *options)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert text in done.output and len(done.output.strip().splitlines()) == 1
