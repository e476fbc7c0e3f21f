"""Inputs for segment_attention, shared by the tests of its backends."""

import itertools
import random

import torch

from adapt_kernels.ops.segment_attention import Segment, group_rows


def build(
    samples=1, lengths=(7,), prompts=3, heads=4, kv_heads=2, size=8, value_size=None, padded=False, window=None,
    softcap=None, sinks=False, strided=False, dtype=torch.float64, seed=0,
):  # fmt: skip
    """(query, segments, keyword arguments): `prompts` groups of about `samples` rows share the first segment."""
    torch.manual_seed(seed)
    dice, value_size = random.Random(seed), value_size or size
    group_of_row = [g for g in range(prompts) for _ in range(samples if g else max(1, samples - 1))]
    dice.shuffle(group_of_row)
    rows = len(group_of_row)

    def tensor(entries, length, last):
        shape = (entries, kv_heads, length + 5 * strided, last + 3 * strided)
        return torch.randn(shape, dtype=torch.float64).to(dtype)[:, :, :length, :last]

    segments = []
    for place, length in enumerate(lengths):
        shared = place == 0 and len(lengths) > 1
        entries = prompts if shared else rows + 2 * strided
        groups = group_rows(torch.tensor(group_of_row), prompts) if shared else None
        segments.append(Segment(tensor(entries, length, size), tensor(entries, length, value_size), groups))
    query = torch.randn(rows, heads, size + 2 * strided, dtype=torch.float64).to(dtype)[:, :, :size]
    total = sum(lengths)
    arguments = {"window": window, "softcap": softcap}
    if padded:
        # Rows of one prompt have the same padding.
        per_prompt = [dice.randrange(lengths[0] if len(lengths) > 1 else total) for _ in range(prompts)]
        arguments["starts"] = torch.tensor([per_prompt[g] for g in group_of_row])
    if sinks:
        arguments["sinks"] = torch.randn(heads, dtype=torch.float64).to(dtype)
    return query, segments, arguments


LENGTHS = ((9,), (21, 4), (21, 6, 3), (130, 1), (1,), (17, 0, 1))
SAMPLES = (1, 2, 4, 16)
HEADS = ((4, 4), (4, 2), (6, 1))
OPTIONS = list(itertools.product((False, True), (None, 5), (None, 3.0), (False, True)))


def cases():
    """Every combination of the axes above."""
    for number, (lengths, samples, heads, option) in enumerate(itertools.product(LENGTHS, SAMPLES, HEADS, OPTIONS)):
        padded, window, softcap, sinks = option
        yield {
            **{"lengths": lengths, "samples": samples, "heads": heads[0], "kv_heads": heads[1], "padded": padded},
            **{"window": window, "softcap": softcap, "sinks": sinks, "seed": number},
            "prompts": 1 if samples == 16 else 2,
        }
