"""The Triton backend's search for a large nucleus, in the interpreter: run by test_mode_sample_triton.py."""

import pytest
import torch
from triton_mode_sample_check import check

from adapt_kernels.ops.mode_sample import triton_draw, triton_kernel

pytestmark = pytest.mark.usefixtures("poisoned_workspace")

FLAT = {
    "normal": lambda x: x,
    "wide-normal": lambda x: 3 * x,
    "zipf": lambda x: -x.argsort(1).float().add(1).log(),
    "zipf-in-order": lambda x: -torch.arange(1, x.shape[1] + 1).float().log().expand(x.shape),
}


class TestLargeNucleus:
    """Stage C, on vocabularies small enough for the interpreter."""

    config = triton_kernel.Config(
        statistics_groups=64, draw_groups=64, capacity=2048, few_groups=16, segment=4096, points=16
    )

    @pytest.fixture
    def brackets(self, monkeypatch):
        """Whether the bracket of each row held the threshold."""
        found = []
        search = triton_draw.nucleus_threshold

        def spy(*arguments):
            result = search(*arguments)
            found.append(bool(result[0].handle.data[0]))
            return result

        monkeypatch.setattr(triton_draw, "nucleus_threshold", spy)
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
        bias = torch.tensor([[6.0, 0.1, -0.5], [0.0, 0.0, 0.0]])
        gate = torch.tensor([True, False])
        check(x, self.config, modes=(3, None, 7777), at_mode=gate, mode_bias=bias, only_modes=False, top_p=0.9)
        assert brackets == [True, True]

    def test_a_bracket_that_overflows_only_costs_time(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(22))
        x[1] = x[1].round()
        check(x, triton_kernel.Config(**(vars(self.config) | {"segment": 16})), top_p=0.9)
        assert brackets == [False, False]

    def test_small_nuclei_skip_it(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(23)) * 20
        x[1] = -float("inf")
        check(x, self.config, top_p=0.9, min_p=torch.tensor([0.0, 0.1]))
        assert brackets == []
