"""Every launch of the Triton backend of mode_sample, compiled for four GPUs as its wrapper launches it.

No GPU is needed: a stub driver records launches. Fails on compile errors, spills and shared memory above the limit.
"""

import os
import re

import pytest
import torch

triton = pytest.importorskip("triton")

from stub_driver import TARGETS, stub_driver  # noqa: E402

from adapt_kernels.ops.mode_sample import triton_kernel  # noqa: E402
from adapt_kernels.ops.mode_sample.arguments import check_values, prepare  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="the interpreter does not compile"
    ),
    pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset"),
]
VOCAB_SIZE = 151936
NUCLEUS = {"top_p": 0.95, "modes": (3, None), "mode_bias": 1.0, "at_mode": True, "only_modes": False}
# Per case: arguments and the launches it may take. The nucleus case compiles all there is.
CASES = {
    "nucleus": (NUCLEUS, 4),
    "plain": ({"temperature": 0.7}, 2),
    "top_k": ({"top_k": 20, "top_p": 0.95, "min_p": 0.05}, 2),
    "mode-step": ({"modes": (3, 7), "mode_bias": 1.0, "at_mode": True}, 2),
    "mode-step-exact": ({"modes": (None, 7), "fast_prob": 0.3, "at_mode": True}, 2),
}


@pytest.fixture
def stub(request, monkeypatch):
    driver = stub_driver(request.param)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return driver


def launches(stub, rows=2, dtype=torch.bfloat16, vocab_size=VOCAB_SIZE, classes=0, **arguments):
    defaults = {"at_mode": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "step": 0}
    arguments = defaults | {"fast_prob": float("nan"), "forced_tokens": -1} | arguments
    modes, bias = arguments.pop("modes", None), arguments.pop("mode_bias", None)
    seeds, only_modes = arguments.pop("seeds", 5), arguments.pop("only_modes", True)
    stub.launches.clear()
    logits = torch.empty(rows, vocab_size, dtype=dtype)
    edits = (None,) * 3
    if classes:
        edits = torch.zeros(vocab_size, dtype=torch.uint8), torch.ones(rows, classes), torch.zeros(rows, classes)
    rows = prepare(logits, modes, bias, seeds, only_modes, edits, **arguments)
    triton_kernel.mode_sample(check_values(rows))
    return list(stub.launches)


def assert_fits(launched, most):
    assert 0 < len(launched) <= most, launched
    for launch in launched:
        assert launch.spilled == 0, launch
        assert launch.registers <= 255, launch


@pytest.mark.parametrize("stub", TARGETS, indirect=True)
def test_the_largest_kernels_fit(stub):
    arguments, most = CASES["nucleus"]
    assert_fits(launches(stub, **arguments), most)


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
@pytest.mark.parametrize("case", ["plain", "mode-step"])
def test_a_step_is_two_launches(stub, case):
    arguments, most = CASES[case]
    assert_fits(launches(stub, **arguments), most)


@pytest.mark.full
@pytest.mark.parametrize("stub", TARGETS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_every_case_fits(stub, case, dtype):
    arguments, most = CASES[case]
    assert_fits(launches(stub, dtype=dtype, **arguments), most)


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_changing_numbers_does_not_recompile(stub):
    launches(stub)
    kernels = (triton_kernel.group_statistics, triton_kernel.draw)
    before = [len(kernel.device_caches[stub.device][0]) for kernel in kernels]
    launches(stub, rows=1, temperature=0, seeds=1, step=1)
    launches(stub, rows=16, temperature=1e30, seeds=2**64 - 1, step=2**40, top_k=-1, forced_tokens=16)
    launches(stub, rows=3, temperature=0.25, seeds=-1, top_k=VOCAB_SIZE)
    assert before == [len(kernel.device_caches[stub.device][0]) for kernel in kernels]


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_a_group_lies_in_the_same_lanes_whatever_the_number_of_rows(stub):
    """So its sums are added in the same order: a row's bits do not depend on the batch."""
    reads = []
    for rows in (1, 64):
        kernels = triton_kernel.group_statistics.device_caches[stub.device][0]
        kernels.clear()
        launches(stub, rows=rows)
        (kernel,) = kernels.values()
        reads.append(set(re.findall(r"#blocked\w* = (.*sizePerThread = \[1, 4\].*)", kernel.asm["ttgir"])))
    assert reads[0] == reads[1] and len(reads[0]) == 1
    assert "threadsPerWarp = [8, 4], warpsPerCTA = [1, 1]" in reads[0].pop()
