"""Which backend runs: automatic choice, explicit names, reasons."""

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels import dispatch
from adapt_kernels.ops.mode_sample import reference

LOGITS = torch.zeros(1, 4)


@pytest.fixture(autouse=True)
def _forget_choices():
    yield
    dispatch._fastest.cache_clear()
    dispatch._runnable.cache_clear()


def test_the_reference_always_runs():
    assert ak.backends()["reference"] is None
    assert dispatch.choose("mode_sample", "reference", LOGITS) is reference


def test_every_backend_has_a_reason_or_runs():
    for name, reason in ak.backends().items():
        assert reason is None or (isinstance(reason, str) and reason), name


def test_auto_takes_the_native_one_on_cpu_where_it_runs():
    if ak.backends()["native"] is not None:
        pytest.skip(ak.backends()["native"])
    assert dispatch.choose("mode_sample", "auto", LOGITS).__name__.endswith(".native")


def test_auto_leaves_float64_to_the_reference():
    assert dispatch.choose("mode_sample", "auto", LOGITS.double()) is reference


def test_an_op_without_the_fastest_backend_falls_back_with_a_warning():
    dispatch._fastest.cache_clear()
    with pytest.warns(RuntimeWarning, match="token_logprobs falls back.*has no such backend in this version"):
        assert dispatch._fastest("token_logprobs", "cuda", 2).__name__.endswith("token_logprobs.reference")


def test_the_warning_points_at_the_caller_of_a_credit_op(monkeypatch):
    def fail():
        raise dispatch.BackendError("native", "no compiler")

    dispatch._fastest.cache_clear()
    dispatch._runnable.cache_clear()
    monkeypatch.setattr(dispatch.jit, "load", fail)
    for call in (ak.token_logprobs, lambda x, ids: ak.policy_loss(x, ids, 0.0, 1.0)):
        with pytest.warns(RuntimeWarning, match="falls back") as caught:
            call(LOGITS, torch.zeros(1, dtype=torch.int64))
        assert [warning.filename for warning in caught] == [__file__]


def test_callers_cannot_change_the_answer():
    ak.backends()["reference"] = "broken"
    assert ak.backends()["reference"] is None


@pytest.mark.parametrize("name", ["", "Reference", "cuda", "torch"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"backend={name!r}.*'auto'.*'reference'"):
        dispatch.choose("mode_sample", name, LOGITS)


def test_a_backend_that_cannot_run_raises_only_when_named(monkeypatch):
    def fail():
        raise dispatch.BackendError("native", "no compiler: apt install g++")

    dispatch._fastest.cache_clear()
    dispatch._runnable.cache_clear()
    monkeypatch.setattr(dispatch.jit, "load", fail)
    with pytest.warns(RuntimeWarning, match=r"falls back to backend='reference'.*no compiler: apt install g\+\+"):
        assert dispatch.choose("mode_sample", "auto", LOGITS) is reference
    with pytest.raises(RuntimeError, match=r"backend='native'.*no compiler: apt install g\+\+"):
        dispatch.choose("mode_sample", "native", LOGITS)
