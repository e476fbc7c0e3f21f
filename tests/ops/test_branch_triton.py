"""Runs triton_branch_cases.py under the Triton interpreter."""

from pathlib import Path

import pytest
from interpreted_cases import run_interpreted

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_branch_cases.py")


@pytest.mark.parametrize("marks", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_is_bit_equal_to_the_reference(marks):
    run_interpreted(CASES, marks)
