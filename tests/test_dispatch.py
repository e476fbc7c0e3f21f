"""Which backend runs: automatic choice, explicit names, reasons."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import adapt_kernels as ak
from adapt_kernels import dispatch
from adapt_kernels.native import jit, kernels, toolchain_cuda
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


CREDIT_OPS = ["token_logprobs", "policy_loss", "linear_policy_loss"]


def on_cuda():
    with FakeTensorMode():
        return torch.empty(1, 4, device="cuda")


@pytest.mark.parametrize("op", CREDIT_OPS)
def test_cuda_takes_the_native_kernels_of_a_credit_op(op, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "load", asked.append)
    for backend in ("auto", "native"):
        dispatch._fastest.cache_clear()
        dispatch._runnable.cache_clear()
        assert dispatch.choose(op, backend, on_cuda()).__name__ == f"adapt_kernels.ops.{op}.native"
    assert asked == [torch.device("cuda")] * 2


@pytest.mark.parametrize("op", ["mode_sample", "branch", "segment_attention", "steer", "kv_scores"])
def test_cuda_takes_triton_where_an_op_has_it(op, monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda _: None)
    assert dispatch.choose(op, "auto", on_cuda()).__name__ == f"adapt_kernels.ops.{op}.triton_kernel"
    if op in ("mode_sample", "steer", "kv_scores"):
        with pytest.raises(ValueError, match="backend='native' takes CPU tensors; got logits on cuda:0"):
            dispatch.choose(op, "native", on_cuda())


def test_kernels_of_the_cpu_alone_never_see_a_gpu(monkeypatch):
    """native.py of an op says which devices it reads: the first by speed is not the first that can."""
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda _: None)
    monkeypatch.setattr(dispatch, "_backends_of", lambda _: ("reference", "native"))
    for op in ("steer", "mode_sample"):
        dispatch._fastest.cache_clear()
        assert dispatch.choose(op, "auto", on_cuda()).__name__ == f"adapt_kernels.ops.{op}.reference"
    dispatch._fastest.cache_clear()


@pytest.mark.parametrize("op", CREDIT_OPS)
def test_cuda_without_nvcc(op, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(toolchain_cuda, "_DEFAULT_HOME", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    logits = on_cuda()
    with pytest.warns(RuntimeWarning, match=rf"{op} falls back to backend='reference'.*no CUDA compiler \(nvcc\)"):
        assert dispatch.choose(op, "auto", logits).__name__.endswith(".reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.choose(op, "auto", logits)
    with pytest.raises(RuntimeError, match=r"no CUDA compiler \(nvcc\)") as error:
        dispatch.choose(op, "native", logits)
    for text in ("install NVIDIA's CUDA toolkit", "set CUDA_HOME", "python -m adapt_kernels.build --cuda"):
        assert text in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_amd_gpus_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(RuntimeError, match="built for AMD GPUs"):
        dispatch.choose("policy_loss", "native", on_cuda())


def test_other_devices_have_no_native_kernels():
    with pytest.raises(ValueError, match="takes CPU or CUDA tensors; got logits on meta"):
        dispatch.choose("policy_loss", "native", LOGITS.to("meta"))


def test_the_warning_points_at_the_caller_of_a_credit_op(monkeypatch):
    def fail():
        raise dispatch.BackendError("native", "no compiler")

    dispatch._fastest.cache_clear()
    dispatch._runnable.cache_clear()
    monkeypatch.setattr(jit, "load", fail)
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
    monkeypatch.setattr(jit, "load", fail)
    with pytest.warns(RuntimeWarning, match=r"falls back to backend='reference'.*no compiler: apt install g\+\+"):
        assert dispatch.choose("mode_sample", "auto", LOGITS) is reference
    with pytest.raises(RuntimeError, match=r"backend='native'.*no compiler: apt install g\+\+"):
        dispatch.choose("mode_sample", "native", LOGITS)
