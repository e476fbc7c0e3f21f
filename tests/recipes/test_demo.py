"""The `adapt` command end to end, with few problems."""

import csv
import json
import math
import shutil
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import commands
from adapt_recipes.evaluation import measure

PROBLEMS = 300


def run(*arguments):
    return CliRunner().invoke(commands.app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def patched():
    folder = ar.checkpoint_path("sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return ak.patch(model, ak.Modes.from_pretrained(folder)), tokenizer


def test_demo_moves_along_the_frontier(tmp_path):
    done = run("demo", "--out", tmp_path / "out", "--problems", PROBLEMS, "--seed", 11)
    assert done.exit_code == 0, done.output
    for heading in ("bias", "sft", "rl", "P(fast)", "accuracy", "tokens", "wall", "random", "gain", "mean tokens"):
        assert heading in done.output
    assert (tmp_path / "out/frontier.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out/frontier.csv").open() as file:
        rows = [{k: v if k == "setting" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    sweep = [row for row in rows if row["setting"] == "mode_bias"]
    biases = [row["value"] for row in sweep]
    assert biases == sorted(biases) and (biases[0], biases[-1]) == (-8, 8)
    for slower, faster in zip(sweep, sweep[1:], strict=False):
        assert slower["p_fast"] <= faster["p_fast"]
        assert slower["mean_tokens"] >= faster["mean_tokens"]
        assert slower["accuracy"] >= faster["accuracy"]
    assert sweep[0]["accuracy"] >= 0.98 and sweep[-1]["accuracy"] <= 0.75
    assert sweep[0]["mean_tokens"] > 8 and sweep[-1]["mean_tokens"] < 3.3
    for row in sweep:
        assert abs(row["sft_accuracy"] - linear(sweep, row["sft_mean_tokens"])) < 0.03  # sft: its own mixing line
    at_0 = next(row for row in sweep if row["value"] == 0)
    assert at_0["accuracy"] - at_0["random_choice"] >= 0.03
    by_probability = {row["value"]: row for row in rows if row["setting"] == "fast_prob"}
    assert sorted(by_probability) == [0.1, 0.5, 0.9]
    for row in [*sweep, *by_probability.values()]:
        p = row["p_fast_expected"]
        assert abs(row["p_fast"] - p) <= 3 * math.sqrt(p * (1 - p) / PROBLEMS) + 1 / PROBLEMS


def linear(sweep, tokens):
    """Accuracy on the line between the ends of the SFT model's sweep."""
    (low, worst), (high, best) = ((row["sft_mean_tokens"], row["sft_accuracy"]) for row in (sweep[-1], sweep[0]))
    return worst + (best - worst) * (tokens - low) / (high - low)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_fast_prob_is_the_share(patched, p):
    count = 2000
    row = measure.measure(*patched, ar.problems(count, seed=12), "fast_prob", p, seed=12)
    assert abs(row.p_fast - p) <= 3 * math.sqrt(p * (1 - p) / count)


def test_batches_do_not_change_with_the_setting(patched, monkeypatch):
    """Rows of any batch keep their random numbers, so a larger bias never turns a fast row slow."""
    monkeypatch.setattr(measure, "ROWS_PER_CALL", 16)
    prompts = [task.prompt for task in ar.problems(40, seed=13)]
    low, high = (measure.generate_rows(*patched, prompts, seed=5, do_sample=True, mode_bias=b) for b in (-1.0, 1.0))
    assert len(low.texts) == len(low.tokens) == low.modes.numel() == 40
    assert (high.modes <= low.modes).all()
    assert 0 < (low.modes == 0).sum() < (high.modes == 0).sum() < 40


def test_tokens_count_mode_token_and_end(patched):
    prompts = [task.prompt for task in ar.problems(8, difficulty=5, seed=14)]
    assert measure.generate_rows(*patched, prompts, mode="fast").tokens == [3] * 8
    assert measure.generate_rows(*patched, prompts, mode="slow").tokens == [9] * 8


def test_generate_prints_mode_probability_tokens_and_text():
    task = ar.problems(1, difficulty=3, seed=16)[0]
    folder = ar.checkpoint_path("sft")
    base = ["generate", "--model", folder, "--fast", "<answer>", "--slow", "<think>"]
    slow = run(*base, "--mode", "slow", task.prompt, "1 +1 . . . . . . . ?")
    assert slow.exit_code == 0, slow.output
    assert "mode slow  own P(slow) 0." in slow.output and "7 tokens" in slow.output and "5 tokens" in slow.output
    assert f"</think> {task.answer}" in slow.output and "<think> 2 </think> 2" in slow.output
    fast = run(*base, "--bias", 20, task.prompt)
    assert "mode fast" in fast.output and "3 tokens" in fast.output
    drawn = [run(*base, "--fast-prob", 0.5, "--seed", seed, "--sample", task.prompt).output for seed in range(6)]
    assert any("mode fast" in text for text in drawn) and any("mode slow" in text for text in drawn)
    assert "mode fast" in run("generate", "--model", folder, "--bias", 20, task.prompt).output  # modes.json


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--mode", "slow", "--bias", 1], "mode_bias"),
        (["--bias", 1, "--fast-prob", 0.5], "fast_prob"),
        (["--fast-prob", 1.5], "fast_prob"),
        (["--mode", "medium"], "unknown mode 'medium'"),
        (["--fast", "<hurry>", "--slow", "<think>"], "<hurry>"),
        (["--fast", "<answer>"], "--fast and --slow go together"),
        (["--max-new-tokens", 0], "max_new_tokens"),
    ],
)
def test_generate_errors_are_plain(options, text):
    done = run("generate", "--model", ar.checkpoint_path("sft"), *options, "1 +1 . . . . . . . ?")
    assert done.exit_code == 2
    assert text in done.output and "Traceback" not in done.output


def test_a_missing_token_comes_with_its_remedy():
    done = run("generate", "--model", ar.checkpoint_path("sft"), "--fast", "<hurry>", "--slow", "<think>", "1 ?")
    assert "add_special_tokens" in done.output


def test_missing_folders(tmp_path):
    done = run("generate", "--model", tmp_path / "absent", "1 ?")
    assert done.exit_code == 2
    assert f"model folder {tmp_path / 'absent'} does not exist: expected a local folder with config.json" in done.output
    assert len(done.output.strip().splitlines()) == 1
    done = run("generate", "--model", tmp_path, "1 ?")
    assert done.exit_code == 2 and f"model folder {tmp_path} has no config.json" in done.output


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(ar.checkpoint_path("sft"), folder)
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**settings, "auto_map": {"AutoConfig": "own.Config"}}))
    done = run("generate", "--model", folder, "1 ?")
    assert done.exit_code == 2 and f"{folder / name} asks for Python code" in done.output


def test_a_broken_folder_is_an_error_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    done = run("generate", "--model", tmp_path, "1 ?")
    assert done.exit_code == 2 and "Traceback" not in done.output and str(tmp_path) in done.output


def test_demo_errors(tmp_path):
    assert "problems must be at least 1, got 0" in run("demo", "--out", tmp_path, "--problems", 0).output
    (tmp_path / "file").write_text("")
    done = run("demo", "--out", tmp_path / "file")
    assert done.exit_code == 2 and "file" in done.output and "Traceback" not in done.output


def test_help_of_the_installed_entry_point():
    script = "from adapt_recipes.cli import main; import sys; sys.argv = ['adapt', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("demo", "generate", "fetch-smollm2", "train"):
        assert command in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("package", "module"), [("typer", "typer"), ("matplotlib", "matplotlib"), ("PyYAML", "yaml")])
def test_missing_package_is_named(package, module):
    script = f"import sys; sys.modules[{module!r}] = None; from adapt_recipes.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"adapt: the command line needs {package}: pip install 'adapt-kernels[recipes]'"
