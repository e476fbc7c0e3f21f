"""Runs triton_mode_sample_*cases.py under the Triton interpreter, a process per section."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreted_cases import run_interpreted

pytest.importorskip("triton")
FOLDER = Path(__file__).parent
FILES = {
    "TestLargeNucleus": "triton_mode_sample_nucleus_cases.py",
    "TestRandomStream": "triton_mode_sample_stream_cases.py",
}
SECTIONS = [
    "TestFilters",
    "TestRead",
    "TestNumbers",
    "TestLargeNucleus",
    "TestModes",
    "TestLayout",
    "TestRandomStream",
    "TestClasses",
]


def run_cases(section, marks):
    cases = FOLDER / FILES.get(section, "triton_mode_sample_cases.py")
    run_interpreted(f"{cases}::{section}", marks)


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
