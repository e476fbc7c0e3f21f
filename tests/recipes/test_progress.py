"""Long work shows a bar on a terminal, and nothing elsewhere."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import terminal
from adapt_recipes.commands import app
from adapt_recipes.evaluation.frontier import measure_modes
from adapt_recipes.evaluation.generate import CountedSteps, answer
from adapt_recipes.models import load

PROMPTS = [problem.prompt for problem in ar.problems(6, seed=2)]


@pytest.fixture(scope="module")
def model():
    loaded, tokenizer = load(ar.checkpoint_path("sft"))
    modes = ak.Modes.from_pretrained(ar.checkpoint_path("sft"))
    return ak.patch(loaded, modes), tokenizer, modes


def test_a_bar_on_a_terminal_and_nothing_elsewhere(monkeypatch):
    for is_terminal in (True, False):
        written = io.StringIO()
        console = Console(file=written, force_terminal=is_terminal, width=100)
        monkeypatch.setattr(terminal, "console", console)
        with terminal.progress("answering", 4) as advance:
            assert (advance is not None) is is_terminal
            if advance is not None:
                advance(3)
        assert ("answering" in written.getvalue()) is is_terminal


def test_every_decode_step_counts_and_no_token_changes(model):
    loaded, tokenizer, _ = model
    counted = []
    plain = answer(loaded, tokenizer, PROMPTS, mode="slow")
    watched = answer(loaded, tokenizer, PROMPTS, mode="slow", streamer=CountedSteps(counted.append))
    assert watched.texts == plain.texts and counted == [1] * max(plain.tokens)


def test_every_answer_of_a_measurement_counts(model):
    counted = []
    measure_modes(*model, ar.problems(5, seed=1), rows_per_call=2, advance=counted.append)
    assert counted == [2, 2, 2, 2, 1, 1]


def test_generate_prints_no_bar_into_a_pipe():
    done = CliRunner().invoke(app, ["generate", "--model", str(ar.checkpoint_path("sft")), *PROMPTS])
    assert done.exit_code == 0 and "answering" not in done.output and "\x1b" not in done.output
