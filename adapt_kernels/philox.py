"""The random stream of `philox_reference`, on torch tensors of any device. Same bits; noise equal to one ulp."""

import torch

from adapt_kernels.philox_purposes import (
    GROUP_SIZE,
    PURPOSE_GROUP,
    PURPOSE_KEEP,
    PURPOSE_PATH,
    PURPOSE_RULE,
    PURPOSE_TOKEN,
)
from adapt_kernels.philox_purposes import row_seed as row_seed

__all__ = [
    "GROUP_SIZE",
    "PURPOSE_GROUP",
    "PURPOSE_KEEP",
    "PURPOSE_PATH",
    "PURPOSE_RULE",
    "PURPOSE_TOKEN",
    "check_seed",
    "fresh_seed",
    "gumbel",
    "random_words",
    "row_seed",
    "row_seeds",
    "uniform",
]

_LOW32 = 0xFFFFFFFF


def random_words(seed, step, purpose: int, item) -> tuple[torch.Tensor, torch.Tensor]:
    """The two 32-bit words (int64 tensors in [0, 2**32)) behind one uniform; int64 inputs, broadcastable."""
    c0, c1 = item & _LOW32, (item >> 32) & _LOW32
    c2, c3 = step & _LOW32, torch.full_like(item, purpose)
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(10):
        # int64 products wrap, and two's complement keeps all 64 bits: the shifts only need masking.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW32) ^ c1 ^ k0, p1 & _LOW32, ((p0 >> 32) & _LOW32) ^ c3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return c0, c1


def uniform(seed, step, purpose: int, item) -> torch.Tensor:
    """The uniform (float64) at (seed, step, purpose, item); int64 tensors, broadcastable."""
    high, low = random_words(seed, step, purpose, item)
    return ((high.double() * 2.0**32 + low.double() + 0.5) * 2.0**-64).clamp(max=1 - 2.0**-53)


def gumbel(seed, step, purpose: int, item) -> torch.Tensor:
    """Standard Gumbel noise (float64) at (seed, step, purpose, item); int64 tensors, broadcastable."""
    return -torch.log(-torch.log1p(-uniform(seed, step, purpose, item)))


def fresh_seed() -> int:
    """One 64-bit seed (signed) from torch's default CPU generator, so `torch.manual_seed` governs it."""
    return int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))


def check_seed(seed: int) -> None:
    """Raises ValueError unless the seed fits 64 bits, signed or unsigned."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"a seed must fit 64 bits; got {seed}")


def row_seeds(seed: int, count: int) -> torch.Tensor:
    """int64 [count]: `row_seed(seed, i)` of every row. Raises ValueError unless the seed fits 64 bits."""
    check_seed(seed)
    first = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([first] + [row_seed(seed, i) for i in range(1, count)], dtype=torch.int64)[:count]
