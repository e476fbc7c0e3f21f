"""Which backend runs: automatic choice, explicit names, reasons."""

import pytest

import adapt_kernels as ak
from adapt_kernels import dispatch


def test_the_reference_always_runs():
    assert ak.backends()["reference"] is None
    assert dispatch.resolve("reference") == "reference"


def test_every_backend_has_a_reason_or_runs():
    for name, reason in ak.backends().items():
        assert reason is None or (isinstance(reason, str) and reason), name


def test_auto_is_one_that_can_run():
    assert ak.backends()[dispatch.resolve("auto")] is None


def test_callers_cannot_change_the_answer():
    ak.backends()["reference"] = "broken"
    assert ak.backends()["reference"] is None


@pytest.mark.parametrize("name", ["", "Reference", "cuda", "torch"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"backend={name!r}.*'auto'.*'reference'"):
        dispatch.resolve(name)


def test_a_backend_that_cannot_run_raises_only_when_named(monkeypatch):
    monkeypatch.setattr(dispatch, "backends", lambda: {"native": "no compiler: apt install g++", "reference": None})
    assert dispatch.resolve("auto") == "reference"
    with pytest.raises(RuntimeError, match=r"backend='native'.*no compiler: apt install g\+\+"):
        dispatch.resolve("native")
