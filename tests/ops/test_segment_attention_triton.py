"""Runs triton_segment_attention_cases.py under the Triton interpreter."""

from pathlib import Path

import pytest
from interpreted_cases import run_interpreted

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_segment_attention_cases.py")


@pytest.mark.parametrize("marks", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_equals_float64(marks):
    run_interpreted(CASES, marks)
