"""The list of mutants cannot rot: every snippet is still there once, and the tests that should notice it exist."""

import pytest
from mode_sample_mutants import MUTANTS
from mutant import ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}:{mutant.breaks}")
def test_a_mutant_is_of_today(mutant):
    assert mutant.fault() is None
    names = [name for name in mutant.tests if name.startswith("tests/")]
    assert names
    for name in names:
        file, _, section = name.partition("::")
        assert not section or f"class {section}:" in (ROOT / file).read_text("utf-8")


def test_enough_of_each_kind():
    native = sum(mutant.file.startswith("csrc/") for mutant in MUTANTS)
    assert native >= 10 and len(MUTANTS) - native >= 25


@pytest.mark.parametrize(
    ("original", "mutated", "said"),
    [
        ("no such snippet", "x", "has it 0 times"),
        ("    return ", "x", "times: "),
        ("GRANULE = ", "GRANULE = ", "nothing changes"),
    ],
)
def test_a_row_of_no_use_is_told(original, mutated, said):
    file = "adapt_kernels/ops/mode_sample/triton_words.py"
    assert said in Mutant(file, original, mutated, "", ()).fault()
