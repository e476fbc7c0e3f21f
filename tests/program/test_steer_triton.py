"""Runs triton_steer_cases.py under the Triton interpreter."""

from pathlib import Path

import pytest
from interpreted_cases import run_interpreted

triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9):
    pytest.skip(
        f"the interpreter of triton {triton.__version__} refuses masks made of a block's condition and a scalar's,"
        " which its compiler takes: tests/aot compiles these kernels",
        allow_module_level=True,
    )
CASES = Path(__file__).with_name("triton_steer_cases.py")


@pytest.mark.parametrize("marks", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_is_bit_equal_to_the_reference(marks):
    run_interpreted(CASES, marks)
