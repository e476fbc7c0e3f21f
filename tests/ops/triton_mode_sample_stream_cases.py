"""The random stream in Triton against NumPy, in the interpreter: run by test_mode_sample_triton.py."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from adapt_kernels import philox_reference
from adapt_kernels.ops import triton_random

pytestmark = pytest.mark.usefixtures("poisoned_workspace")


@triton.jit
def stream_kernel(seed: tl.int64, step: tl.int64, high, low, seeds, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = triton_random.random_words(seed.to(tl.int64), step.to(tl.int64), triton_random.PURPOSE_TOKEN, i * 7)
    tl.store(high + i, a.to(tl.int64))
    tl.store(low + i, b.to(tl.int64))
    tl.store(seeds + i, triton_random.row_seed(seed.to(tl.int64), i.to(tl.int64)))


@triton.jit
def noise_kernel(high, low, noise, N: tl.constexpr):
    i = tl.arange(0, N)
    words = triton_random.gumbel_from_words(tl.load(high + i).to(tl.uint32), tl.load(low + i).to(tl.uint32))
    tl.store(noise + i, words)


class TestRandomStream:
    @pytest.mark.parametrize(("seed", "step"), [(0, 0), (5, 3), (-3, 2**31), (2**62 + 12345, 2**32 - 1)])
    def test_words_and_row_seeds_equal_numpy(self, seed, step):
        n = 256
        high, low, seeds = torch.empty(3, n, dtype=torch.int64)
        stream_kernel[(1,)](seed, step, high, low, seeds, n)
        bits = philox_reference.random_bits(seed, step, philox_reference.PURPOSE_TOKEN, np.arange(n) * 7)
        assert ((high.numpy().astype(np.uint64) << np.uint64(32)) | low.numpy().astype(np.uint64) == bits).all()
        assert seeds.tolist() == [philox_reference.row_seed(seed, i) for i in range(n)]

    def test_noise_of_extreme_words(self):
        words = [
            0,
            1,
            2**64 - 1,
            2**64 - 2,
            2**63,
            *(2**k for k in range(1, 64)),
            *(2**64 - 2**k for k in range(1, 60)),
        ]
        bits = np.array((words * 2)[:256] + [3] * max(0, 256 - 2 * len(words)), dtype=np.uint64)
        high = torch.from_numpy((bits >> np.uint64(32)).astype(np.int64))
        low = torch.from_numpy((bits & np.uint64(0xFFFFFFFF)).astype(np.int64))
        noise = torch.empty(256, dtype=torch.float64)
        noise_kernel[(1,)](high, low, noise, 256)
        assert np.isfinite(noise.numpy()).all()
        assert np.abs(noise.numpy() - philox_reference.gumbel_from_bits(bits)).max() < 1e-9
