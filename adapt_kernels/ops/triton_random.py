"""The random stream of `adapt_kernels.philox_reference` on the device: the same bits, float64 noise."""

import triton
import triton.language as tl

PURPOSE_GROUP = tl.constexpr(0)
PURPOSE_TOKEN = tl.constexpr(1)
PURPOSE_RULE = tl.constexpr(2)


@triton.jit
def random_words(seed, step, purpose, item):
    """The two uint32 words behind one uniform. seed, step: int64 scalars; item: non-negative int32 tensor."""
    c0 = item.to(tl.uint32)
    c1 = c0 * 0
    c2 = c1 + step.to(tl.uint32)
    c3 = c1 + purpose
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        previous0, previous2 = c0, c2
        c0 = tl.umulhi(previous2, 0xCD9E8D57) ^ c1 ^ k0
        c1 = previous2 * 0xCD9E8D57
        c2 = tl.umulhi(previous0, 0xD2511F53) ^ c3 ^ k1
        c3 = previous0 * 0xD2511F53
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1


@triton.jit
def uniform(seed, step, purpose, item):
    """The uniform of the stream, float64, at most 1 - 2**-53."""
    high, low = random_words(seed, step, purpose, item)
    u = (high.to(tl.float64) * 4294967296.0 + low.to(tl.float64) + 0.5) * 2.0**-64
    return tl.where(u >= 1.0, u - 2.0**-53, u)


@triton.jit
def gumbel_from_words(high, low):
    """Standard Gumbel noise -log(-log1p(-u)), float64, finite for all words."""
    u = (high.to(tl.float64) * 4294967296.0 + low.to(tl.float64) + 0.5) * 2.0**-64
    # log1p does not exist here: its series where 1 - u would lose digits of u, else the logarithm itself.
    small = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))
    large = -tl.log(tl.maximum(1.0 - u, 2.0**-53))
    return -tl.log(tl.where(u < 2.0**-10, small, large))


@triton.jit
def gumbel(seed, step, purpose, item):
    """Standard Gumbel noise of the stream at (seed, step, purpose, item)."""
    high, low = random_words(seed, step, purpose, item)
    return gumbel_from_words(high, low)


@triton.jit
def _mix64(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def row_seed(seed, row):
    """`philox_reference.row_seed`: the seed of one row under an int64 call seed."""
    first = seed.to(tl.uint64)
    mixed = _mix64(_mix64(first) + row.to(tl.uint64) * 0x9E3779B97F4A7C15)
    return tl.where(row == 0, first, mixed).to(tl.int64)
