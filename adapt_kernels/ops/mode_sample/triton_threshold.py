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
    first, from_groups, count, values, weights,
    group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Values and exp(values) of one chunk: of the buffer, or computed again from listed groups."""
    if from_groups:
        y = listed_group_values(
            group_list, first, count, source, mode_ids, listed_y, shift, peak, temperature,
            NUM_MODES, OTHER, GROUPS,
        )  # fmt: skip
        weight = tl.exp(y)
    else:
        slot = first + tl.arange(0, GROUPS * GROUP)
        y = tl.load(values + slot, mask=slot < count, other=NEG_INF)
        weight = tl.load(weights + slot, mask=slot < count, other=0.0)
    return y, weight


@triton.jit
def depth_key(y):
    """int32 that orders values <= 0 downwards: 0 for 0, 0x7F800000 for -inf; values alike in float32 share one."""
    return (0.0 - y).to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def lowest_key(
    by_mass, target, from_groups, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
    temperature, NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Key of the lowest value with less than `target` weight strictly above it, as far as float32 sums tell.

    Halves the range of keys that are open, and snaps its ends to values that exist.
    """
    step = tl.where(from_groups, GROUPS, GROUPS * GROUP)
    # Keys up to `kept` are known to stay, keys from `dropped` on to go.
    kept = tl.full((), -1, tl.int32)
    dropped = tl.full((), 0x7F800000, tl.int32)
    while dropped - kept > 1:
        pivot = kept + (dropped - kept + 1) // 2
        above = tl.zeros([GROUPS * GROUP], tl.float32)
        under = tl.full([GROUPS * GROUP], 0x7F800000, tl.int32)
        over = tl.full([GROUPS * GROUP], -1, tl.int32)
        for first in range(0, count, step):
            y, weight = candidate_chunk(
                first, from_groups, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
                temperature, NUM_MODES, OTHER, GROUPS,
            )  # fmt: skip
            key = depth_key(y)
            higher = key < pivot
            above += tl.where(higher, tl.where(by_mass, weight, 1.0).to(tl.float32), 0.0)
            over = tl.maximum(over, tl.where(higher, key, -1))
            under = tl.minimum(under, tl.where(higher, 0x7F800000, key))
        highest = tl.min(under)
        if tl.sum(above) < target:
            # The highest value from the pivot down has as much above it; without one, the next above is the last.
            lowest = tl.max(over)
            kept = tl.where(highest < dropped, highest, lowest)
            dropped = tl.where(highest < dropped, dropped, kept)
        else:
            dropped = tl.max(over) + 1
    return kept


@triton.jit
def lowest_kept(
    by_mass, target, from_groups, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
    temperature, NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The lowest value with less than `target` weight strictly above it (the highest if target <= 0), the weight above
    it, the exp(values) from it up, and the weight from it up. Values are <= 0.

    Searches `count` entries of the buffer `values`, or the first `count` groups of `group_list`: by float32 keys and
    sums, then from value to value with float64 sums in a fixed order, which is where it decides.
    """
    step = tl.where(from_groups, GROUPS, GROUPS * GROUP)
    target = tl.maximum(target, 1e-30)
    key = lowest_key(
        by_mass, target.to(tl.float32), from_groups, count, values, weights, group_list, source, mode_ids, listed_y,
        shift, peak, temperature, NUM_MODES, OTHER, GROUPS,
    )  # fmt: skip
    value = 0.0 - tl.maximum(key, 0).to(tl.float32, bitcast=True).to(tl.float64)
    above = tl.zeros((), tl.float64)
    mass = tl.zeros((), tl.float64)
    weight_from = tl.zeros((), tl.float64)
    rising = tl.full((), 0, tl.int1)
    walking = tl.full((), 1, tl.int1)
    while walking:
        sums = tl.zeros([GROUPS * GROUP], tl.float64)
        equal = tl.zeros([GROUPS * GROUP], tl.float64)
        masses = tl.zeros([GROUPS * GROUP], tl.float64)
        over = tl.full([GROUPS * GROUP], float("inf"), tl.float64)
        under = tl.full([GROUPS * GROUP], float("-inf"), tl.float64)
        for first in range(0, count, step):
            y, weight = candidate_chunk(
                first, from_groups, count, values, weights, group_list, source, mode_ids, listed_y, shift, peak,
                temperature, NUM_MODES, OTHER, GROUPS,
            )  # fmt: skip
            masses += tl.where(y >= value, weight, 0.0)
            weight = tl.where(by_mass, weight, 1.0)
            sums += tl.where(y > value, weight, 0.0)
            equal += tl.where((y == value) & (y > NEG_INF), weight, 0.0)
            over = tl.minimum(over, tl.where(y > value, y, INF))
            under = tl.maximum(under, tl.where(y < value, y, NEG_INF))
        above = tl.sum(sums)
        mass = tl.sum(masses)
        lower = tl.max(under)
        # Up where too much lies above; down where the value itself leaves the target open. Never back down.
        up = above >= target
        weight_from = above + tl.sum(equal)
        down = (weight_from < target) & (rising == 0) & (lower > NEG_INF)
        value = tl.where(up, tl.min(over), tl.where(down, lower, value))
        rising = rising | up
        walking = up | down
    return value, above, mass, weight_from


@triton.jit
def exact_masses(
    cut, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """float64 sums of exp(y) over a row, and over its y > cut: where float32 sums leave a comparison open."""
    total = tl.zeros([GROUPS * GROUP], tl.float64)
    above = tl.zeros([GROUPS * GROUP], tl.float64)
    for first in range(0, source.vocab_size, GROUPS * GROUP):
        columns = first + tl.arange(0, GROUPS * GROUP)
        mask = columns < source.vocab_size
        y = tempered(gated(load_logits(source, columns, mask).to(tl.float64), shift), peak, temperature)
        y = with_listed(y, columns, mode_ids, listed_y, NUM_MODES, OTHER)
        weight = tl.where(mask, tl.exp(y), 0.0)
        total += weight
        above += tl.where(y > cut, weight, 0.0)
    return tl.sum(total), tl.sum(above)


@triton.jit
def list_survivors(
    bound, tops, num_groups, values, weights, group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Lists the groups that reach `bound`, and in the buffer their values from it up; returns both numbers."""
    group = tl.arange(0, GROUP_SLOTS)
    top = tl.load(tops + group, mask=group < num_groups, other=NEG_INF)
    num_listed = list_groups((top >= bound) & (top > NEG_INF), group, group_list)
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
    return num_listed, filled


@triton.jit
def filter_threshold(
    k, p, total, error, bracketed, outside, filled, highest, tops, num_groups, values, weights,
    group_list, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """(Lowest tempered value that top-k (k > 0) and then top-p (p < 1) keep, whether the bracket held it); one of
    them must be on. error: of `total` and `outside`, relative.

    bracketed: `values` holds the `filled` candidates of a large nucleus, above which lies the mass `outside`, all of it
    above `highest`. Else, or if that misses, from `tops`, the largest values of the groups: k groups whose maxima
    reach t hold k tokens >= t, and groups whose maxima alone weigh p * total from t up hold the nucleus: no survivor
    is below t, so only groups that reach t are read again.
    """
    threshold = tl.full((), float("-inf"), tl.float64)
    num_listed = 0
    # One search after another: 0 the bound t, 1 top-k, whose survivors' mass is exact, 2 top-p, once more where the
    # error of the total leaves it open, 3 done.
    search = tl.where(bracketed, 2, 0)
    while search < 3:
        if search == 0:
            for first in range(0, GROUP_SLOTS, GROUPS * GROUP):
                group = first + tl.arange(0, GROUPS * GROUP)
                top = tl.load(tops + group, mask=group < num_groups, other=NEG_INF)
                tl.store(values + group, top, mask=group < GROUP_SLOTS)
                tl.store(weights + group, tl.exp(top), mask=group < GROUP_SLOTS)
            tl.debug_barrier()
        by_rank = (search == 1) | ((search == 0) & (k > 0))
        # The guard keeps the bound below the nucleus whatever the rounding of the two sums.
        target = p * total * tl.where(search == 0, 1.000001 + error, 1.0) - outside
        target = tl.where(by_rank, k.to(tl.float64), target)
        from_groups = (search > 0) & (filled > CAPACITY)
        count = tl.where(search == 0, GROUP_SLOTS, tl.where(from_groups, num_listed, filled))
        found, above, mass, weight = lowest_kept(
            by_rank == 0, target, from_groups, count, values, weights, group_list, source, mode_ids, listed_y, shift,
            peak, temperature, NUM_MODES, OTHER, GROUPS,
        )  # fmt: skip
        slack = tl.where(by_rank, 0.0, error * (target + 2.0 * outside))
        if search == 0:
            num_listed, filled = list_survivors(
                tl.where(weight < target, NEG_INF, found), tops, num_groups, values, weights, group_list, source,
                mode_ids, listed_y, shift, peak, temperature, NUM_MODES, OTHER, GROUP_SLOTS, CAPACITY, GROUPS,
            )  # fmt: skip
            search = tl.where(k > 0, 1, 2)
        elif is_certain(above, mass, target, slack):
            missed = bracketed & ((target <= 0.0) | (mass < target))
            threshold = tl.where(missed, threshold, tl.maximum(threshold, found))
            # What top-k left is summed up exactly.
            total = tl.where(missed, total, mass)
            error = tl.where(missed, error, 0.0)
            outside = tl.where(missed, 0.0, outside)
            search = tl.where(missed, 0, tl.where((search == 1) & (p < 1.0), 2, 3))
            bracketed = bracketed & ~missed
        else:
            total, outside = exact_masses(
                highest, source, mode_ids, listed_y, shift, peak, temperature, NUM_MODES, OTHER, GROUPS
            )  # fmt: skip
            error = tl.zeros((), tl.float64)
    return threshold, bracketed


@triton.jit
def is_certain(above, mass, target, slack):
    """Whether the value with `above` above it and `mass` from it up is the last, or none is, however wrong by `slack`
    the target is."""
    held = (above + slack < target) & (mass - slack >= target)
    return held | (slack <= 0.0) | (mass + slack < target) | (target + slack <= 0.0)


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
