"""The Triton backend's search for a large nucleus, in the interpreter: run by test_mode_sample_triton.py."""

import pytest
import torch
import triton
import triton.language as tl
from triton_mode_sample_check import check

from adapt_kernels.ops.mode_sample import triton_draw, triton_kernel, triton_nucleus

pytestmark = pytest.mark.usefixtures("poisoned_workspace")

FLAT = {
    "normal": lambda x: x,
    "wide-normal": lambda x: 3 * x,
    "zipf": lambda x: -x.argsort(1).float().add(1).log(),
    "zipf-in-order": lambda x: -torch.arange(1, x.shape[1] + 1).float().log().expand(x.shape),
}


@triton.jit
def words_of(low, high):
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def two_bf16(word):
    return (word << 16).to(tl.float32, bitcast=True), (word & -65536).to(tl.float32, bitcast=True)


@triton.jit
def two_fp16(word):
    low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def above_bf16(a, b):
    (a0, a1), (b0, b1) = two_bf16(a), two_bf16(b)
    return words_of(tl.where(a0 > b0, -1, 0), tl.where(a1 > b1, -1, 0))


@triton.jit
def reaches_bf16(a, b):
    (a0, a1), (b0, b1) = two_bf16(a), two_bf16(b)
    return words_of(tl.where(a0 >= b0, -1, 0), tl.where(a1 >= b1, -1, 0))


@triton.jit
def above_fp16(a, b):
    (a0, a1), (b0, b1) = two_fp16(a), two_fp16(b)
    return words_of(tl.where(a0 > b0, -1, 0), tl.where(a1 > b1, -1, 0))


@triton.jit
def reaches_fp16(a, b):
    (a0, a1), (b0, b1) = two_fp16(a), two_fp16(b)
    return words_of(tl.where(a0 >= b0, -1, 0), tl.where(a1 >= b1, -1, 0))


@pytest.fixture
def packed(monkeypatch):
    """Stage C with NVIDIA's comparisons of pairs, which stand-ins take the place of here."""
    for name in ("above_bf16", "above_fp16", "reaches_bf16", "reaches_fp16"):
        monkeypatch.setattr(triton_nucleus, name, globals()[name])
    monkeypatch.setattr(triton_kernel, "_compares_pairs", lambda rows, words: words and rows.token_classes is None)


class TestLargeNucleus:
    """Stage C, on vocabularies small enough for the interpreter."""

    config = triton_kernel.Config(draw_groups=64, capacity=8192, few_groups=16, few_rows_read_groups=64)

    @pytest.fixture
    def brackets(self, monkeypatch):
        """Whether the bracket of each row held the threshold."""
        found = []
        listed, search = triton_draw.open_bracket, triton_draw.filter_threshold

        def open_bracket(*arguments):
            found.append(None)
            return listed(*arguments)

        def filter_threshold(*arguments):
            threshold, bracketed = search(*arguments)
            if found and found[-1] is None:
                found[-1] = bool(bracketed.handle.data[0])
            return threshold, bracketed

        monkeypatch.setattr(triton_draw, "open_bracket", open_bracket)
        monkeypatch.setattr(triton_draw, "filter_threshold", filter_threshold)
        return found

    @pytest.mark.parametrize("shape", FLAT)
    def test_bracket_holds_the_threshold(self, brackets, shape):
        x = FLAT[shape](torch.randn(2, 32001, generator=torch.Generator().manual_seed(20)))
        dtype = torch.bfloat16 if shape == "wide-normal" else torch.float32
        check(x.to(dtype), self.config, top_p=torch.tensor([0.6, 0.95]), temperature=0.9)
        # Neighbours of a sorted row are alike: whole groups are a poor sample, and the slow search has to finish.
        assert brackets == [True, True] or shape == "zipf-in-order"

    def test_bracket_with_listed_tokens(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(21)).half()
        x[1, 3] = -0.22  # inside the bracket, and kept
        bias = torch.tensor([[6.0, 0.1, -0.5], [0.0, 0.0, 0.0]])
        gate = torch.tensor([True, False])
        check(x, self.config, modes=(3, None, 7777), at_mode=gate, mode_bias=bias, only_modes=False, top_p=0.9)
        assert brackets == [True, True]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_pairs_of_logits_in_words(self, brackets, packed, dtype):
        x = torch.randn(2, 20480, generator=torch.Generator().manual_seed(24))
        x[0, 5000:5130], x[1, 7] = -float("inf"), float("nan")
        check(x.to(dtype), self.config, top_p=torch.tensor([0.6, 0.95]), temperature=0.9)
        check(x.to(dtype), self.config, modes=(3, None, 7777), at_mode=True, only_modes=False, top_p=0.9)
        assert brackets == [True] * 4

    def test_bracket_of_edited_logits(self, brackets):
        """The classed ids end within a group; rows of odd length."""
        x = torch.randn(2, 20001, generator=torch.Generator().manual_seed(25)).bfloat16()
        classes = torch.arange(15000).remainder(7).eq(0).to(torch.uint8)
        edits = classes, torch.tensor([[1.0, 0.5], [1.0, 1.0]]), torch.tensor([[0.0, 0.25], [0.0, -float("inf")]])
        check(x, self.config, class_edits=edits, top_p=0.9)
        assert brackets == [True, True]

    def test_a_bracket_that_overflows_only_costs_time(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(22))
        x[1] = x[1].round()
        check(x, triton_kernel.Config(**(vars(self.config) | {"capacity": 16})), top_p=0.9)
        assert brackets == [False, False]

    def test_min_p_that_cuts_above_the_bracket(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(26))
        got = check(x, self.config, top_p=0.9, min_p=torch.tensor([0.3, 0.0]))
        assert brackets == [False, True] and got.kept[0] < 200

    def test_small_nuclei_skip_it(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(23)) * 20
        x[1] = -float("inf")
        check(x, self.config, top_p=0.9, min_p=torch.tensor([0.0, 0.1]))
        assert brackets == []
