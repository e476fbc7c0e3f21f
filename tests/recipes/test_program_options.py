"""`adapt generate --program` and `--thinking-budget`."""

import json

import pytest
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.commands import app

PROMPT = "1 +1 +2 +3 +1 . . . . . ?"


def run(*arguments, prompt=PROMPT):
    words = ["generate", "--model", ar.checkpoint_path("sft"), *arguments, prompt]
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_a_thinking_budget_is_exact(tokens):
    done = run("--mode", "slow", "--thinking-budget", tokens)
    assert done.exit_code == 0, done.output
    assert f"fired: 1 x rule 0; think {tokens} tokens, closed by rule" in done.output


def test_a_budget_that_is_not_reached_changes_nothing():
    plain, roomy = run("--mode", "slow"), run("--mode", "slow", "--thinking-budget", 60)
    assert "fired" not in plain.output and plain.output.split("\n")[1:3] == roomy.output.split("\n")[1:3]
    assert "fired: no rule; think" in roomy.output and "closed by model" in roomy.output


def test_a_preset_with_its_settings():
    done = run("--mode", "slow", "--program", "budget", "--program-setting", "tokens=2")
    assert done.exit_code == 0, done.output
    assert "think 2 tokens, closed by rule" in done.output


def program_file(folder, definition):
    path = folder / "mine.json"
    path.write_text(json.dumps(definition))
    return path


def test_a_program_of_a_file_and_of_a_folder(tmp_path):
    definition = {
        "spans": {"think": {"open": "<think>", "close": "</think>"}},
        "rules": [{"force": "</think>", "when": {"in": "think", "count": [1, None]}}],
    }
    path = program_file(tmp_path, definition)
    from adapt_recipes.models import load

    program = ak.Program.from_dict(definition, load(ar.checkpoint_path("sft"))[1])
    program.save_pretrained(tmp_path / "saved")
    for given in (path, tmp_path / "saved", tmp_path / "saved" / "program.json"):
        done = run("--mode", "slow", "--program", given)
        assert done.exit_code == 0, done.output
        assert "fired: 1 x rule 0; think 1 tokens, closed by rule" in done.output


def test_rules_that_never_armed_are_named(tmp_path):
    rules = [{"force": [28], "when": {"in": "think"}, "p": 0.5}]
    path = program_file(tmp_path, {"spans": {"think": {"open": 27, "close": 28}}, "rules": rules})
    assert "never armed: rules[0] (force)" in run("--mode", "fast", "--program", path).output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--program", "budgett"], "unknown preset 'budgett'; there are"),
        (["--program", "budget"], "preset 'budget': missing a required argument: 'tokens'"),
        (["--program", "budget", "--program-setting", "tokens"], "must be NAME=VALUE, such as tokens=64; got 'tokens'"),
        (["--program-setting", "tokens=1"], "--program-setting needs --program"),
        (["--program", "absent.json"], "no program file absent.json"),
        (["--thinking-budget", -1], "thinking_budget"),
    ],
)
def test_errors_are_plain(options, text):
    done = run(*options)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert text in done.output


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    assert f"{path} is not JSON" in run("--program", path).output
    path.write_text('{"rule": []}')
    assert "a program is an object with 'rules'" in run("--program", path).output
    done = run("--program", program_file(tmp_path, {"rules": []}), "--program-setting", "tokens=1")
    assert "--program-setting belongs to a preset" in done.output
