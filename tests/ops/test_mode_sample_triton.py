"""Runs triton_mode_sample_*cases.py under the Triton interpreter, in processes of its own.

The variable must be set before the first import of triton and makes that process unable to compile.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent
FILES = {
    "TestLargeNucleus": "triton_mode_sample_nucleus_cases.py",
    "TestRandomStream": "triton_mode_sample_stream_cases.py",
}
SECTIONS = [
    "TestFilters",
    "TestNumbers",
    "TestLargeNucleus",
    "TestModes",
    "TestLayout",
    "TestRandomStream",
    "TestClasses",
]


def run_cases(section, marks):
    cases = FOLDER / FILES.get(section, "triton_mode_sample_cases.py")
    command = [sys.executable, "-m", "pytest", f"{cases}::{section}", "-q", "-m", marks, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("section", SECTIONS)
def test_equals_the_reference(section):
    run_cases(section, "not full")


@pytest.mark.full
@pytest.mark.parametrize("section", ["TestFilters", "TestModes"])
def test_equals_the_reference_in_every_combination(section):
    run_cases(section, "full")


def test_unavailable_without_a_gpu():
    code = "from adapt_kernels.triton_driver import unavailable_reason; print(unavailable_reason())"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    for extra, word in ({}, "driver"), ({"TRITON_INTERPRET": "1"}, "None"):
        done = subprocess.run([sys.executable, "-c", code], env=environment | extra, capture_output=True, text=True)
        assert word in done.stdout, done.stderr
