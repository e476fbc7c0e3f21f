"""Stage B: exact filter thresholds from the groups that can matter.

Every filter keeps {y >= threshold}, and top-k and top-p ask one question: the lowest value v with less than `target`
weight strictly above it. A token weighs 1 for top-k (target k) and exp(y) for top-p (target p * total).
"""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import GROUP, INF, NEG_INF, gated, load_logits, tempered, with_listed


@triton.jit
def list_groups(chosen, group, group_list):
    """Writes the chosen group indices in ascending order; returns their number."""
    position = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.debug_barrier()
    tl.store(group_list + position, group, mask=chosen)
    tl.debug_barrier()
    return tl.sum(chosen.to(tl.int32))


@triton.jit
def listed_group_values(
    group_list, first, count, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Tempered float64 values [GROUPS * 128] of listed groups first to first + GROUPS, -inf past the end."""
    slot = first + tl.arange(0, GROUPS)
    group = tl.load(group_list + slot, mask=slot < count, other=0)
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = (slot < count)[:, None] & (columns < source.vocab_size)
    z = load_logits(source, columns, mask).to(tl.float64)
    y = tempered(gated(z, shift), peak, temperature)
    y = with_listed(y, columns, mode_ids, listed_y, NUM_MODES, OTHER)
    return tl.reshape(tl.where(mask, y, NEG_INF), [GROUPS * GROUP])


@triton.jit
def candidate_chunk(
    first, count, values, weights,
    group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, FROM_GROUPS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Values and exp(values) of one chunk: of the buffer, or computed again from listed groups."""
    if FROM_GROUPS:
        y = listed_group_values(
            group_list, first, count, source, mode_ids, listed_y, shift, peak, temperature,
            NUM_MODES, OTHER, GROUPS,
        )  # fmt: skip
        return y, tl.exp(y)
    else:
        slot = first + tl.arange(0, GROUPS * GROUP)
        y = tl.load(values + slot, mask=slot < count, other=NEG_INF)
        return y, tl.load(weights + slot, mask=slot < count, other=0.0)


@triton.jit
def lowest_kept(
    by_mass, target, count, values, weights,
    group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, FROM_GROUPS: tl.constexpr, GROUPS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """The lowest value with less than `target` weight strictly above it (the highest if target <= 0), and the sum of
    exp(values) from it up. The highest value must be 0.

    Searches `count` entries of the buffer `values`, or the first `count` groups of `group_list`. A pass weighs what
    lies above PIVOTS points and finds the lowest and highest value that are still open; the next points lie between
    them, so two passes always settle at least one value.
    """
    step: tl.constexpr = GROUPS if FROM_GROUPS else GROUPS * GROUP
    target = tl.maximum(target, 1e-30)
    # Values up to `dropped` are known to go, values above `kept` to stay.
    dropped = tl.full((), float("-inf"), tl.float64)
    kept = tl.full((), float("inf"), tl.float64)
    low = dropped
    high = kept
    # Any first points are correct; logits that matter are seldom further down.
    pivot = tl.arange(0, PIVOTS).to(tl.float64) * (16.0 / PIVOTS) - 16.0
    while low < high:
        low = tl.full((), float("inf"), tl.float64)
        high = tl.full((), float("-inf"), tl.float64)
        above = tl.zeros([PIVOTS], tl.float64)
        for first in range(0, count, step):
            y, weight = candidate_chunk(
                first, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
                temperature, NUM_MODES, OTHER, FROM_GROUPS, GROUPS,
            )  # fmt: skip
            low = tl.minimum(low, tl.min(tl.where(y > dropped, y, INF)))
            high = tl.maximum(high, tl.max(tl.where(y <= kept, y, NEG_INF)))
            weight = tl.where(by_mass, weight, 1.0)
            above += tl.sum(tl.where(y[None, :] > pivot[:, None], weight[None, :], 0.0), 1)
        if low < high:
            dropped = tl.max(tl.where(above >= target, pivot, dropped))
            kept = tl.min(tl.where(above >= target, kept, pivot))
            first_open = tl.maximum(low, dropped)
            span = tl.minimum(high, kept) - first_open
            pivot = first_open + span * (tl.arange(0, PIVOTS).to(tl.float64) / PIVOTS)
    mass = tl.zeros((), tl.float64)
    for first in range(0, count, step):
        y, weight = candidate_chunk(
            first, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
            temperature, NUM_MODES, OTHER, FROM_GROUPS, GROUPS,
        )  # fmt: skip
        mass += tl.sum(tl.where(y >= low, weight, 0.0))
    return low, mass


@triton.jit
def filter_threshold(
    k, p, total, group, group_top, values, weights,
    group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, CAPACITY: tl.constexpr, GROUPS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Lowest tempered value that top-k (k > 0) and then top-p (p < 1) keep; one of them must be on.

    k groups whose maxima reach t hold k tokens >= t, and groups whose maxima alone weigh p * total from t up hold the
    nucleus: no survivor is below t, so only groups that reach t are read again.
    """
    tl.store(values + group, group_top)
    tl.store(weights + group, tl.exp(group_top))
    tl.debug_barrier()
    # The guard keeps the bound below the nucleus whatever the rounding of the two sums.
    target = tl.where(k > 0, k.to(tl.float64), p * total * 1.000001)
    reach = tl.where(k > 0, tl.sum((group_top > NEG_INF).to(tl.float64)), tl.sum(tl.exp(group_top)))
    bound, _ = lowest_kept(
        k <= 0, target, group.shape[0], values, weights, group_list, source, mode_ids, listed_y, shift,
        peak, temperature, NUM_MODES, OTHER, False, GROUPS, PIVOTS,
    )  # fmt: skip
    bound = tl.where(reach < target, NEG_INF, bound)
    num_listed = list_groups((group_top >= bound) & (group_top > NEG_INF), group, group_list)

    filled = 0
    for first in range(0, num_listed, GROUPS):
        y = listed_group_values(
            group_list, first, num_listed, source, mode_ids, listed_y, shift, peak, temperature,
            NUM_MODES, OTHER, GROUPS,
        )  # fmt: skip
        take = (y >= bound) & (y > NEG_INF)
        position = filled + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(values + position, y, mask=take & (position < CAPACITY))
        tl.store(weights + position, tl.exp(y), mask=take & (position < CAPACITY))
        filled += tl.sum(take.to(tl.int32))
    tl.debug_barrier()

    threshold = tl.full((), float("-inf"), tl.float64)
    for by_mass in range(2):
        active = tl.where(by_mass == 1, p < 1.0, k > 0)
        if active:
            target = tl.where(by_mass == 1, p * total, k.to(tl.float64))
            if filled <= CAPACITY:
                found, mass = lowest_kept(
                    by_mass == 1, target, filled, values, weights, group_list, source, mode_ids, listed_y,
                    shift, peak, temperature, NUM_MODES, OTHER, False, GROUPS, PIVOTS,
                )  # fmt: skip
            else:
                found, mass = lowest_kept(
                    by_mass == 1, target, num_listed, values, weights, group_list, source, mode_ids,
                    listed_y, shift, peak, temperature, NUM_MODES, OTHER, True, GROUPS, PIVOTS,
                )  # fmt: skip
            threshold = tl.maximum(threshold, found)
            total = mass
    return threshold


@triton.jit
def is_kept(y, threshold, min_p):
    """The filters' verdict on tempered values."""
    return (y >= threshold) & (tl.exp(y) >= min_p) & (y > NEG_INF)


@triton.jit
def lowest_kept_logit(threshold, min_p, shift, peak, temperature):
    """The smallest float32 logit that `is_kept`: its test costs one float32 comparison per token.

    Bisection over the order-preserving integers of float32, 128 candidates at a time; +inf always passes.
    """
    low = tl.full((), -2139095041, tl.int64)  # -inf
    high = tl.full((), 2139095040, tl.int64)  # +inf
    while high - low > 1:
        step = (high - low + 126) // 127
        key = tl.minimum(low + step * tl.arange(0, 128), high)
        bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.int32)
        y = tempered(gated(bits.to(tl.float32, bitcast=True).to(tl.float64), shift), peak, temperature)
        passes = is_kept(y, threshold, min_p) | (key == high)
        low = tl.max(tl.where(passes, low, key))
        high = tl.min(tl.where(passes, key, high))
    bits = tl.where(high < 0, high ^ 0x7FFFFFFF, high).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)
