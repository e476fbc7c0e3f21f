"""The published random stream of adapt_kernels, in plain NumPy.

Everything random in this package is a pure function of (row seed, step, purpose, item), so a row draws the same
noise alone, in any batch and in any slot. The stream is frozen: a change of one bit here is a breaking release.

    word[0..3] = Philox4x32-10(counter=(item lo, item hi, step, purpose), key=(seed lo, seed hi))
    bits       = word[0] * 2**32 + word[1]                      64 random bits
    u          = (bits + 0.5) / 2**64, at most 1 - 2**-53       in (0, 1)
    gumbel     = -log(-log1p(-u))                               upper tail exact to u = 2**-65 (gumbel = 45)

A token is drawn in two levels over groups of 128 neighbouring token ids. With kept mass M_g of group g and tempered
logit y_i of token i (both natural, any common offset):

    group = argmax_g  log M_g + gumbel(seed, step, PURPOSE_GROUP, item=g)
    token = argmax_i  y_i     + gumbel(seed, step, PURPOSE_TOKEN, item=i)      over the kept tokens i of that group

which is exact: P(group) = M_g / sum M and P(token | group) = exp(y_i) / M_g. Ties go to the lowest index.

Rule r of a program that acts with a chance p does so at a step where u(seed, step, PURPOSE_RULE, item=r) < p. KeepKV's
"random" score of a row's position i is u(seed, 0, PURPOSE_KEEP, item=i).

The random score of a row with n new tokens is u(seed, n, PURPOSE_PATH, item=0).

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); constants as in Random123.
"""

import numpy as np

from adapt_kernels.philox_purposes import (
    GROUP_SIZE,
    PURPOSE_GROUP,
    PURPOSE_KEEP,
    PURPOSE_PATH,
    PURPOSE_RULE,
    PURPOSE_TOKEN,
    row_seed,
)

__all__ = [
    "GROUP_SIZE",
    "PURPOSE_GROUP",
    "PURPOSE_KEEP",
    "PURPOSE_PATH",
    "PURPOSE_RULE",
    "PURPOSE_TOKEN",
    "draw",
    "gumbel",
    "gumbel_from_bits",
    "philox4x32",
    "random_bits",
    "row_seed",
    "uniform",
]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)


def philox4x32(counter, key, rounds: int = 10):
    """Philox4x32: four counter words and two key words (uint32 values, broadcastable) -> four uint32 arrays."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT32) ^ c1 ^ k0, p1 & _LOW32, (p0 >> _SHIFT32) ^ c3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW32, (k1 + _KEY_STEPS[1]) & _LOW32
    return tuple(np.asarray(word, dtype=np.uint32) for word in (c0, c1, c2, c3))


def random_bits(seed, step, purpose, item):
    """64 random bits as uint64 for integer arrays or ints (two's complement for negative seeds)."""
    seed, item = _as_uint64(seed), _as_uint64(item)
    step = _as_uint64(step) & _LOW32
    seed, step, item = np.broadcast_arrays(seed, step, item)
    counter = (item & _LOW32, item >> _SHIFT32, step, np.full_like(item, purpose))
    high, low, _, _ = philox4x32(counter, (seed & _LOW32, seed >> _SHIFT32))
    return (high.astype(np.uint64) << _SHIFT32) | low.astype(np.uint64)


def gumbel_from_bits(bits):
    """Standard Gumbel noise (float64) of 64-bit words; finite for every word."""
    return -np.log(-np.log1p(-_uniform_from_bits(bits)))


def _uniform_from_bits(bits):
    high, low = (bits >> _SHIFT32).astype(np.float64), (bits & _LOW32).astype(np.float64)
    return np.minimum((high * 2.0**32 + low + 0.5) * 2.0**-64, 1 - 2.0**-53)


def uniform(seed, step, purpose, item):
    """The uniform (float64) of the stream at (seed, step, purpose, item)."""
    return _uniform_from_bits(random_bits(seed, step, purpose, item))


def gumbel(seed, step, purpose, item):
    """Standard Gumbel noise (float64) of the stream at (seed, step, purpose, item)."""
    return gumbel_from_bits(random_bits(seed, step, purpose, item))


def draw(y, kept, seed, step: int = 0) -> int:
    """The token this stream draws from one row: tempered logits y [V] (float64) and kept mask [V] (bool)."""
    y = np.where(kept, np.asarray(y, dtype=np.float64), -np.inf)
    num_groups = -(-len(y) // GROUP_SIZE)
    grouped = np.pad(y, (0, num_groups * GROUP_SIZE - len(y)), constant_values=-np.inf).reshape(num_groups, GROUP_SIZE)
    with np.errstate(divide="ignore"):
        log_mass = np.log(np.exp(grouped - y.max()).sum(axis=1))
    group = int(np.argmax(log_mass + gumbel(seed, step, PURPOSE_GROUP, np.arange(num_groups))))
    token_ids = group * GROUP_SIZE + np.arange(GROUP_SIZE)
    lane = int(np.argmax(grouped[group] + gumbel(seed, step, PURPOSE_TOKEN, token_ids)))
    return group * GROUP_SIZE + lane


def _as_uint64(value):
    if isinstance(value, int):
        return np.uint64(value % 2**64)
    return np.asarray(value).astype(np.uint64)
