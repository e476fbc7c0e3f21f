"""Runs triton_kv_scores_cases.py under the Triton interpreter."""

from pathlib import Path

import pytest
from interpreted_cases import run_interpreted

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_kv_scores_cases.py")


@pytest.mark.parametrize("marks", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_agrees_with_the_reference(marks):
    run_interpreted(CASES, marks)
