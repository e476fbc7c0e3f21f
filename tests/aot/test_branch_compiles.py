"""branch and segment_attention on Triton, compiled for four GPUs as their wrappers launch them; no GPU is needed."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from stub_driver import TARGETS, StubDriver  # noqa: E402

from adapt_kernels.ops.branch import triton_kernel as branch_kernel  # noqa: E402
from adapt_kernels.ops.segment_attention import Segment, group_rows  # noqa: E402
from adapt_kernels.ops.segment_attention import triton_kernel as attention_kernel  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="the interpreter does not compile"
    ),
    pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset"),
]


@pytest.fixture
def stub(request, monkeypatch):
    driver = StubDriver(request.param)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return driver


def assert_fits(launched):
    assert launched
    for launch in launched:
        assert launch.spilled == 0, launch
        assert launch.registers <= 255, launch


def attend(samples=16, dtype=torch.bfloat16, size=128, softcap=None, window=None, sinks=None, late=64):
    rows, heads, kv_heads = 4 * samples, 8, 2
    query = torch.empty(rows, heads, size, dtype=dtype)
    groups = group_rows(torch.arange(4).repeat_interleave(samples), 4)
    prompt = Segment(*torch.empty(2, 4, kv_heads, 2048, size, dtype=dtype), groups)
    own = [Segment(*torch.empty(2, rows, kv_heads, n, size, dtype=dtype)) for n in (64, late)]
    starts = torch.zeros(rows, dtype=torch.int64)
    attention_kernel.segment_attention(query, (prompt, *own), 0.1, starts, window, softcap, sinks)


def attend_one_row(length, heads=32, kv_heads=8, size=128):
    query = torch.empty(1, heads, size, dtype=torch.bfloat16)
    own = Segment(*torch.empty(2, 1, kv_heads, length, size, dtype=torch.bfloat16))
    attention_kernel.segment_attention(query, (own,), 0.1, None, None, None, None)


@pytest.mark.parametrize("stub", TARGETS, indirect=True)
def test_branch_is_one_launch(stub):
    modes, prompts = torch.zeros(64, dtype=torch.int8), torch.zeros(64, dtype=torch.int64)
    branch_kernel.branch(modes, prompts, torch.ones(3, dtype=torch.int64), 4, torch.ones(64, dtype=torch.bool))
    assert [launch.kernel for launch in stub.launches] == ["place_rows"]
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", TARGETS, indirect=True)
def test_attention_is_a_launch_per_segment_and_a_merge(stub):
    attend()
    assert [launch.kernel for launch in stub.launches] == ["attend", "attend", "attend", "merge"]
    # 4 prompts x 2 KV heads x one tile of 64 queries x 16 splits of 128 positions.
    assert stub.launches[0].grid == (4, 2, 16)
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", TARGETS, indirect=True)
def test_one_row_fills_a_card_from_2048_positions_on(stub):
    for length in (2048, 4096, 4097, 16385, 131072):
        attend_one_row(length)
    attends = [launch.grid for launch in stub.launches if launch.kernel == "attend"]
    # 8 KV heads; 132 SMs are an H100's.
    assert attends == [(1, 8, splits) for splits in (16, 32, 17, 33, 128)]
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", ["sm_80", "sm_90"], indirect=True)
def test_wide_heads_fit_shared_memory(stub):
    attend(size=256)
    assert_fits(stub.launches)


@pytest.mark.full
@pytest.mark.parametrize("stub", TARGETS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_every_attention_fits(stub, dtype, size):
    attend(dtype=dtype, size=size, softcap=30.0, window=100, sinks=torch.empty(8, dtype=dtype))
    attend(samples=1, dtype=dtype, size=size)
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_growing_does_not_recompile(stub):
    from adapt_kernels.ops.segment_attention.triton_attend import attend as kernel
    from adapt_kernels.ops.segment_attention.triton_attend import merge

    def compiled():
        return [len(each.device_caches[stub.device][0]) for each in (kernel, merge)]

    # The kernels that the other tests find without spills are those of any context.
    attend(late=48)
    attend_one_row(2048)
    before = compiled()
    for length in (1, 2, 3, 16, 17, 80, 144, 8192):
        attend(late=length)
    for length in (1, 2, 17, 4097, 131072):
        attend_one_row(length)
    assert compiled() == before
