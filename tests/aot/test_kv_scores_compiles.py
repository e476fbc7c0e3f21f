"""kv_scores on Triton, compiled for four GPUs as its wrapper launches it; no GPU is needed."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

triton = pytest.importorskip("triton")

from stub_driver import TARGETS, StubDriver  # noqa: E402

from adapt_kernels.ops.kv_scores import triton_kernel  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="the interpreter does not compile"
    ),
    pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset"),
]
HEADS = 8


@pytest.fixture
def stub(request, monkeypatch):
    driver = StubDriver(request.param)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return driver


def compare_keys(length=1000, width=128, heads=HEADS):
    return triton_kernel.mean_similarity(torch.empty(heads, length, width))


def assert_fits(launched):
    assert launched
    for launch in launched:
        assert launch.spilled == 0, launch
        assert launch.registers <= 255, launch


@pytest.mark.parametrize("stub", TARGETS, indirect=True)
def test_keys_are_compared_in_two_launches(stub):
    compare_keys()
    assert [launch.kernel for launch in stub.launches] == ["find_newest", "average_rest"]
    # 1000 keys by 64.
    assert {launch.grid for launch in stub.launches} == {(16, HEADS, 1)}
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_odd_widths_fit(stub):
    compare_keys(width=33)
    assert_fits(stub.launches)


@pytest.mark.full
@pytest.mark.parametrize("stub", TARGETS, indirect=True)
@pytest.mark.parametrize("width", [1, 24, 33, 64, 80, 256, 512])
def test_every_width_fits(stub, width):
    compare_keys(width=width)
    compare_keys(1, width)
    assert_fits(stub.launches)


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_growing_does_not_recompile(stub):
    kernels = (triton_kernel.find_newest, triton_kernel.average_rest)
    compare_keys(48, heads=3)
    before = [len(each.device_caches[stub.device][0]) for each in kernels]
    for length in (1, 2, 17, 33, 1024, 8191):
        compare_keys(length, heads=3)
    assert [len(each.device_caches[stub.device][0]) for each in kernels] == before


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_nothing_holds_all_pairs(stub):
    """Nor a second copy of keys whose width is usual."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor))
            return result

    unit = torch.empty(HEADS, 1000, 128)
    with Watch():
        triton_kernel.mean_similarity(unit)
    assert max(sizes) == HEADS * 1000
