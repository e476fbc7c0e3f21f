"""Token classes beside the logits of stage A: edits in place, in tiles of the read."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import GROUP, by_class


@triton.jit
def classes_of(source, group, WORDS: tl.constexpr):
    """Class bytes of whole groups [groups, 16], in the order of the tiles: eight, or four pairs in words of 16 bits."""
    inside = (group + 1) * GROUP <= source.num_classed
    lane = tl.arange(0, 16)[None, :]
    if WORDS:
        at = source.classes.to(tl.pointer_type(tl.int16), bitcast=True) + group * (GROUP // 2) + lane
        k0, k1 = tl.load(at, mask=inside, other=0), tl.load(at + 16, mask=inside, other=0)
        k2, k3 = tl.load(at + 32, mask=inside, other=0), tl.load(at + 48, mask=inside, other=0)
        return k0, k1, k2, k3, k0, k1, k2, k3
    else:
        at = source.classes + group * GROUP + lane
        k0, k1 = tl.load(at, mask=inside, other=0), tl.load(at + 16, mask=inside, other=0)
        k2, k3 = tl.load(at + 32, mask=inside, other=0), tl.load(at + 48, mask=inside, other=0)
        k4, k5 = tl.load(at + 64, mask=inside, other=0), tl.load(at + 80, mask=inside, other=0)
        k6, k7 = tl.load(at + 96, mask=inside, other=0), tl.load(at + 112, mask=inside, other=0)
        return k0, k1, k2, k3, k4, k5, k6, k7


@triton.jit
def pair_by_class(a, b, first, second, source, WORDS: tl.constexpr):
    """Two tiles of logits, edited. What a class cannot do so (-inf times nothing) is NaN or +inf, and sick."""
    if WORDS:
        pair = first.to(tl.int32)
        return by_class(a, pair & 255, source), by_class(b, (pair >> 8) & 255, source)
    else:
        return by_class(a, first.to(tl.int32), source), by_class(b, second.to(tl.int32), source)


@triton.jit
def tile_by_class(a0, a1, a2, a3, a4, a5, a6, a7, source, group, all_act, WORDS: tl.constexpr):
    """Eight tiles, edited where any token of theirs is of an acting class."""
    k0, k1, k2, k3, k4, k5, k6, k7 = classes_of(source, group, WORDS)
    some = k0 | k1 | k2 | k3
    if not WORDS:
        some = some | k4 | k5 | k6 | k7
    if all_act | (tl.max(tl.reshape((some != 0).to(tl.int32), [some.numel], can_reorder=True)) != 0):
        a0, a1 = pair_by_class(a0, a1, k0, k1, source, WORDS)
        a2, a3 = pair_by_class(a2, a3, k1 if WORDS else k2, k3, source, WORDS)
        a4, a5 = pair_by_class(a4, a5, k2 if WORDS else k4, k5, source, WORDS)
        a6, a7 = pair_by_class(a6, a7, k3 if WORDS else k6, k7, source, WORDS)
    return a0, a1, a2, a3, a4, a5, a6, a7


@triton.jit
def acts_on_row(source, num_classes, CLASS_SLOTS: tl.constexpr):
    """(whether any class changes this row, whether class 0 does)."""
    kind = tl.arange(0, CLASS_SLOTS)
    scale = tl.load(source.scale + kind, mask=kind < num_classes, other=1.0)
    bias = tl.load(source.bias + kind, mask=kind < num_classes, other=0.0)
    acts = ((scale != 1.0) | (bias != 0.0)).to(tl.int32)
    return tl.max(acts) != 0, tl.max(tl.where(kind == 0, acts, 0)) != 0
