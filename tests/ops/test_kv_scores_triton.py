"""Runs triton_kv_scores_cases.py under the Triton interpreter, in a process of its own, which cannot compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_kv_scores_cases.py")


@pytest.mark.parametrize("marks", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_agrees_with_the_reference(marks):
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-m", marks, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, env=environment, cwd=CASES.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
