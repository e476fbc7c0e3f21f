"""`adapt schemes`: every row of the table, and one of them with its formula and example."""

import pytest
from typer.testing import CliRunner

import adapt_kernels as ak
from adapt_recipes import commands, terminal


@pytest.fixture
def adapt(monkeypatch):
    monkeypatch.setattr(terminal.console, "width", 240)
    return lambda *arguments: CliRunner().invoke(commands.app, ["schemes", *arguments])


def test_the_list_names_every_scheme_with_its_inputs_and_source(adapt):
    lines = adapt().output.splitlines()
    for name, row in ak.schemes.SCHEMES.items():
        line = next(line for line in lines if line.split()[:1] == [name])
        assert row.source.split(",")[0] in line and all(word in line for word in (*row.signals, *row.constants)), name
        assert ("state of earlier batches" in line) == row.stateful


@pytest.mark.parametrize("name", ak.schemes.SCHEMES)
def test_a_page_shows_formula_constants_and_example(adapt, name):
    done = adapt(name)
    row = ak.schemes.SCHEMES[name]
    text = " ".join(done.output.split())
    assert done.exit_code == 0 and row.source in text and " ".join(row.reward.__doc__.split()) in text
    assert all(
        f"constant {constant} = {getattr(ak.schemes.SchemeSettings(), constant)}" in text for constant in row.constants
    )
    for golden in ak.schemes.GOLDENS[name]:
        assert all(f"{value:.6f}"[:-2] in text for value in golden.rewards)


def test_the_command_itself_reaches_the_terminal(adapt):
    assert "1.926777" in adapt("adactrl").output and "1.181193" in adapt("adactrl").output


def test_an_unknown_scheme_is_one_line(adapt):
    done = adapt("grppo")
    assert done.exit_code == 2 and "scheme must be one of 'separate', 'reference'" in done.output
    assert len(done.output.strip().splitlines()) == 1
