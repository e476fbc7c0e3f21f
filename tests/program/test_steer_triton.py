"""Runs triton_steer_cases.py under the Triton interpreter, in a process of its own, which cannot compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-m", marks, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, env=environment, cwd=CASES.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
