"""The demonstration on a real model, on tiny ones."""

import csv

import pytest
from rich.console import Console

from adapt_recipes.smollm2_frontier import ASKED, run_frontier_demo
from adapt_recipes.tasks.problem import Problem
from adapt_recipes.tasks.words import grade_free


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_demo_writes_tables_and_picture(trained, base, tmp_path):
    console = Console(record=True, width=200)
    rows = run_frontier_demo(tmp_path, 20, 3, console, (str(trained), str(trained)), str(base))
    written = rows_of(tmp_path / "frontier.csv")
    assert [row["setting"] for row in rows] == [row["setting"] for row in written]
    assert len(written) == 13 + 4 + len(ASKED)
    swept = written[:13]
    assert [row["setting"] for row in swept[5:8]] == ["bias -1", "bias 0", "bias +1"]
    shares = [float(row["p_fast"]) for row in swept]
    assert shares == sorted(shares) and all(float(row["seconds"]) > 0 for row in swept)
    # The same model twice, at even odds or not, is a random choice of itself.
    assert all(abs(float(row["gain"])) < 0.2 and float(row["gain_error"]) >= 0 for row in swept)
    assert [row["p_fast"] for row in written[13:17]] == ["1.0", "0.0"] * 2
    assert [row["setting"] for row in written[17:]] == list(ASKED)
    levels = rows_of(tmp_path / "difficulty.csv")
    assert [row["family"] for row in levels[:5]] == ["all"] * 5
    assert {row["family"] for row in levels} == {"all", "sums", "legs", "stories", "swaps"}
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    said = console.export_text()
    assert "ak.calibrate(target_fast=0.5): bias" in said
    for budget in (0, 8, 24):
        assert f"thinking_budget={budget} on the hardest level:" in said


def test_no_problems_are_refused(tmp_path):
    with pytest.raises(ValueError, match="problems must be at least 1, got 0"):
        run_frontier_demo(tmp_path, 0)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The sum is 12.", True),
        ("3+9=12", True),
        ("12 is what 3 and 9 make", False),
        ("112", False),
        ("twelve", False),
        ("", False),
    ],
)
def test_free_text_is_read_for_its_last_number(text, right):
    assert grade_free(Problem("What is 3 plus 9?", "12", 1, "sums"), text) is right


def test_free_text_is_read_for_its_last_name():
    problem = Problem("Who holds the hat?", "Ben", 1, "swaps")
    assert grade_free(problem, "Ann gives it to Ben.") and not grade_free(problem, "Ben gives it to Ann, 2 times")
