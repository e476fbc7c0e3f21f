"""Rows and settings that break samplers; every backend and dtype runs through the same ones."""

import itertools
import math
import random

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SMALL_VOCABS = [1, 2, 31, 127, 128, 129, 1000]
TEMPERATURES = [0.0, 1e-38, 1e-8, 1e-3, 1.0, 1e4, math.inf]
TOP_PS = [0.0, 1e-9, 0.5, 0.9, 1 - 1e-7, 1.0]
MIN_PS = [0.0, 1e-6, 1.0]
# Cuts at 1 - 1e-7 lie among the masses of the last tokens: near a cut by construction, not by accident.
P_AT_THE_END = 1 - 1e-7

ROWS = {
    "normal": lambda v, g: torch.randn(v, generator=g),
    "wide": lambda v, g: 3 * torch.randn(v, generator=g),
    "equal": lambda v, g: torch.full((v,), 1.5),
    "one-hot": lambda v, g: 20.0 * (torch.arange(v) == v // 2),
    "zipf": lambda v, g: -2 * torch.log(1.0 + torch.randperm(v, generator=g)),
    "bimodal": lambda v, g: torch.randn(v, generator=g) + 8.0 * (torch.rand(v, generator=g) < 0.2),
    "coarse": lambda v, g: torch.round(4 * torch.randn(v, generator=g)) / 2,
    "around-12": lambda v, g: 12 + torch.randn(v, generator=g),
    "lone": lambda v, g: torch.full((v,), -math.inf).index_fill(0, torch.tensor([v - 1]), -3.0),
    "late": lambda v, g: torch.randn(v, generator=g).masked_fill(torch.arange(v) < v // 2, -math.inf),
    "range-1e4": lambda v, g: 1e4 * torch.rand(v, generator=g) - 5e3,
    "offset-3e4": lambda v, g: 3e4 + 30 * torch.randn(v, generator=g),
    "fp16-max": lambda v, g: torch.randn(v, generator=g).index_fill(0, torch.tensor([v // 3]), 65504.0),
    "subnormal": lambda v, g: (torch.randn(v, generator=g) - 100).index_fill(0, torch.tensor([0]), 0.0),
    "zeros": lambda v, g: torch.zeros(v) * (1 - 2 * (torch.arange(v) % 2)),
    "half": lambda v, g: torch.full((v,), -math.inf, dtype=torch.float64).index_copy(
        0, torch.arange(min(v, 3)), torch.tensor([0.0, -math.log(2), -math.log(2)], dtype=torch.float64)[:v]
    ),
}


def row(name, vocab_size, dtype=torch.float32, seed=0):
    """One named row of logits."""
    return ROWS[name](vocab_size, torch.Generator().manual_seed(seed)).to(dtype)


def top_ks(vocab_size):
    return [-1, 0, 1, 2, vocab_size - 1, vocab_size, vocab_size + 1, 2**30]


def settings(vocab_size, count=None):
    """(temperature, top_k, top_p, min_p): all of them, or every single filter, every T, and `count` mixtures."""
    every = list(itertools.product(TEMPERATURES, top_ks(vocab_size), TOP_PS, MIN_PS))
    if count is None:
        return every
    single = [(1.0, k, 1.0, 0.0) for k in top_ks(vocab_size)]
    single += [(1.0, 0, p, 0.0) for p in TOP_PS] + [(1.0, 0, 1.0, m) for m in MIN_PS]
    single += [(t, 0, 1.0, 0.0) for t in TEMPERATURES] + [(1.0, 50, 0.9, 0.01), (0.7, 20, 0.95, 0.05)]
    return single + random.Random(vocab_size).sample(every, count)
