"""Device functions: one row's arguments, its logits, and the gate (bias, restriction to the modes, temperature)."""

from typing import NamedTuple

import triton
import triton.language as tl

GROUP = tl.constexpr(128)
NEG_INF = tl.constexpr(float("-inf"))
INF = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1.4426950408889634)
# A group's count word is (finite logits) + NAN_UNIT * (NaN logits).
NAN_UNIT = tl.constexpr(200)

# Bits of `shared`: the row arguments whose tensor holds one element for all rows.
TEMPERATURE = tl.constexpr(0)
TOP_K = tl.constexpr(1)
TOP_P = tl.constexpr(2)
MIN_P = tl.constexpr(3)
AT_MODE = tl.constexpr(4)
SEED = tl.constexpr(5)
STEP = tl.constexpr(6)
FAST_PROB = tl.constexpr(7)
FORCED = tl.constexpr(8)


class RowLogits(NamedTuple):
    """A row's logits, and what its token classes do to them. Made in place: no function of Triton 3.6 returns None."""

    start: tl.tensor  # pointer to the first logit
    vocab_size: tl.tensor
    skipped: tl.tensor  # ids before the first
    classes: tl.tensor | None  # uint8 per id; None = no edits
    num_classed: tl.tensor  # ids beyond are of class 0
    scale: tl.tensor  # float32 per class of this row, where there are classes
    bias: tl.tensor


@triton.jit
def row_integer(per_row, value, row, shared, bit: tl.constexpr):
    """An integer row argument: `value` where there is no tensor."""
    if per_row is None:
        return value.to(tl.int64)
    else:
        return tl.load(per_row + tl.where(((shared >> bit) & 1) != 0, 0, row)).to(tl.int64)


@triton.jit
def row_float(per_row, value, row, shared, bit: tl.constexpr):
    """A float64 row argument; `value` carries the bits of the number, for a float argument would lose half of them."""
    if per_row is None:
        return value.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return tl.load(per_row + tl.where(((shared >> bit) & 1) != 0, 0, row))


@triton.jit
def row_start(row, logits, batch_stride, row_stride, rows_per_batch):
    """Pointer to a row of [B, T, V]; rows_per_batch None: all rows lie at one stride."""
    if rows_per_batch is None:
        return logits + row * row_stride
    else:
        return logits + (row // rows_per_batch) * batch_stride + (row % rows_per_batch) * row_stride


@triton.jit
def row_edits(per_class, row, num_classes):
    """A row's part of class_scale or class_bias; where there is none, nothing that is read."""
    if per_class is None:
        return row
    else:
        return per_class + row * num_classes


@triton.jit
def by_class(x, kind, source):
    """Logits times the scale plus the bias of their classes: two roundings, so not one fused operation."""
    return tl.fma(x, tl.load(source.scale + kind), 0.0) + tl.load(source.bias + kind)


@triton.jit
def read_logits(source, columns, mask):
    """float32 logits after edits, NaN included; anything outside the mask."""
    x = tl.load(source.start + columns, mask=mask).to(tl.float32)
    if source.classes is not None:
        ids = source.skipped + columns
        kind = tl.load(source.classes + ids, mask=mask & (ids < source.num_classed), other=0).to(tl.int32)
        gone = (x == NEG_INF) | (tl.load(source.bias + kind) == NEG_INF)
        x = tl.where(gone, NEG_INF, by_class(x, kind, source))
    return x


@triton.jit
def load_logits(source, columns, mask):
    """float32 logits, -inf for NaN and outside the mask. (No `other=`: the interpreter has no bfloat16 constants.)"""
    x = read_logits(source, columns, mask)
    return tl.where(mask & (x == x), x, NEG_INF)


@triton.jit
def gated(z, shift):
    """Bias on float64 logits; -inf wins over +inf, as a logit and as a bias."""
    return tl.where(z == NEG_INF, z, tl.where(shift == NEG_INF, NEG_INF, z + shift))


@triton.jit
def tempered(w, peak, temperature):
    """y = (w - peak) / T in float64, the reference's own two roundings, so that equal values stay equal.

    -inf stays -inf; where the peak is +inf, 0 on the +inf and -inf elsewhere.
    """
    below = tl.where(w == peak, 0.0, w - peak)
    return tl.where((below == NEG_INF) | (w == NEG_INF), NEG_INF, below / temperature)


@triton.jit
def fast_reciprocal(t):
    """1 / t to 1e-14 without the slow path of a float64 division, for 1e-38 <= t <= 1e38."""
    t = tl.minimum(tl.maximum(t, 1.2e-38), 1e38)
    guess = (1.0 / t.to(tl.float32)).to(tl.float64)
    return guess + guess * (1.0 - t * guess)


@triton.jit
def row_scale(temperature_rows, scale, row, shared):
    """log2(e) / T of a row as float32; `scale` where there is no tensor."""
    if temperature_rows is None:
        return tl.zeros((), tl.float32) + scale
    else:
        t = row_float(temperature_rows, 0, row, shared, TEMPERATURE)
        return (fast_reciprocal(tl.where(t == 0.0, 1.0, t)) * LOG2_E).to(tl.float32)


@triton.jit
def fast_scale(temperature):
    """log2(e) / T as float32, kept finite and positive: 0 * inf would be NaN at T = 0+ and at T = inf."""
    return tl.minimum(tl.maximum(1.0 / temperature * LOG2_E, 1.2e-38), 3.0e38).to(tl.float32)


@triton.jit
def fast_weights(x, peak, scale):
    """exp((x - peak) / T) in float32; 1 for x == peak, +inf included."""
    return tl.exp2(tl.where(x == peak, 0.0, x - peak) * scale)


@triton.jit
def log_of_sum(peak, total):
    """peak + log(total), and -inf instead of NaN where nothing was summed."""
    return tl.where(peak == NEG_INF, NEG_INF, peak + tl.log(total))


@triton.jit
def with_listed(y, columns, mode_ids, listed_y, NUM_MODES: tl.constexpr, OTHER: tl.constexpr):
    """Replaces y of the tokens that are modes of their own."""
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            y = tl.where(columns == tl.load(mode_ids + i), tl.load(listed_y + i), y)
    return y


@triton.jit
def with_listed_mass(mass, top, group, y_listed, index, mode_ids, NUM_MODES: tl.constexpr, OTHER: tl.constexpr):
    """Adds the listed tokens to the masses and the maxima of their groups."""
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            here = group == tl.load(mode_ids + i) // GROUP
            y = tl.max(tl.where(index == i, y_listed, NEG_INF))
            mass += tl.where(here, tl.exp(y), 0.0)
            top = tl.where(here, tl.maximum(top, y), top)
    return mass, top


@triton.jit
def open_row(
    source, row, group_peak, group_mass, num_groups, mode_ids, bias, gate, temperature,
    NUM_MODES: tl.constexpr, MODE_SLOTS: tl.constexpr, OTHER: tl.constexpr, ONLY_MODES: tl.constexpr,
    GROUP_SLOTS: tl.constexpr,
):  # fmt: skip
    """The gate on a row's group statistics and listed tokens. Returns

    peaks, masses and tempered peaks of the groups; logits and tempered values of the listed tokens; the bias of all
    other tokens; the row's peak after bias.
    """
    group = tl.arange(0, GROUP_SLOTS)
    real = group < num_groups
    peaks = tl.load(group_peak + row * num_groups + group, mask=real, other=NEG_INF)
    z_listed = tl.full([MODE_SLOTS], float("-inf"), tl.float64)
    w_listed = z_listed
    shift = tl.zeros((), tl.float64)
    if NUM_MODES > 0:
        index = tl.arange(0, MODE_SLOTS)
        mode_id = tl.load(mode_ids + index, mask=index < NUM_MODES, other=-1)
        z_listed = load_logits(source, mode_id, mode_id >= 0).to(tl.float64)
        w_listed = z_listed
        if bias is not None:
            mode_bias = tl.load(bias + row * NUM_MODES + index, mask=index < NUM_MODES, other=0.0)
            w_listed = tl.where(gate, gated(z_listed, mode_bias), z_listed)
            shift = tl.where(gate, tl.sum(tl.where(index == OTHER, mode_bias, 0.0)), 0.0)
    w_group = gated(peaks.to(tl.float64), shift)
    if ONLY_MODES & (OTHER < 0):
        w_group = tl.where(gate, NEG_INF, w_group)
    peak = tl.maximum(tl.max(w_group), tl.max(w_listed))
    y_group = tempered(w_group, peak, temperature)
    masses = tl.load(group_mass + row * num_groups + group, mask=real, other=0.0).to(tl.float64)
    return peaks, masses, y_group, z_listed, tempered(w_listed, peak, temperature), shift, peak


@triton.jit
def with_exact_probability(p, y_listed, index, y_group, group_mass, OTHER: tl.constexpr):
    """Moves mode 0 so that it has probability p among the modes; returns listed values and the shift of all others."""
    peak = tl.max(y_group)
    others = log_of_sum(peak, tl.sum(tl.where(y_group > NEG_INF, group_mass * tl.exp(y_group - peak), 0.0)))
    rest = tl.where(index == 0, NEG_INF, y_listed)
    rest_peak = tl.max(rest)
    if OTHER > 0:
        rest_peak = tl.maximum(rest_peak, others)
    rest_sum = tl.sum(tl.where(rest > NEG_INF, tl.exp(rest - rest_peak), 0.0))
    if OTHER > 0:
        rest_sum += tl.where(others > NEG_INF, tl.exp(others - rest_peak), 0.0)
    rest_mass = log_of_sum(rest_peak, rest_sum)
    wanted = tl.log(p) - tl.log(1.0 - p) + rest_mass
    moves = rest_mass > NEG_INF
    shift = tl.zeros((), tl.float64)
    if OTHER == 0:
        shift = tl.where(moves & (others > NEG_INF), wanted - others, 0.0)
    else:
        y_listed = tl.where(index == 0, tl.where(moves, wanted, y_listed), y_listed)
    top = tl.maximum(tl.max(y_listed), peak + shift)
    top = tl.where(top == NEG_INF, 0.0, top)
    return y_listed - top, shift - top


@triton.jit
def model_mode_probs(z_listed, index, raw_peaks, raw_mass, OTHER: tl.constexpr):
    """The model's own P(mode) at T = 1, renormalised over the modes; 0 where all are -inf."""
    peak = tl.max(z_listed)
    if OTHER >= 0:
        peak = tl.maximum(peak, tl.max(raw_peaks))
    mass = tl.exp(tempered(z_listed, peak, 1.0))
    if OTHER >= 0:
        mass = tl.where(index == OTHER, tl.sum(raw_mass * tl.exp(tempered(raw_peaks, peak, 1.0))), mass)
    total = tl.sum(mass)
    return tl.where(total > 0.0, mass / total, 0.0)
