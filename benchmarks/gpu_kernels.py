"""Triton kernels that only `make gpu` launches."""

import triton
import triton.language as tl

from adapt_kernels.ops.triton_random import PURPOSE_TOKEN, random_words


@triton.jit
def words_kernel(seed: tl.int64, step: tl.int64, high, low, SIZE: tl.constexpr):
    """The stream's two words for items 0 .. SIZE - 1."""
    items = tl.arange(0, SIZE)
    first, second = random_words(seed.to(tl.int64), step.to(tl.int64), PURPOSE_TOKEN, items)
    tl.store(high + items, first.to(tl.int64))
    tl.store(low + items, second.to(tl.int64))
