"""Mutants of what mode_sample's Triton kernels read, gate and draw a group by; see mode_sample_mutants.py."""

from mutant import Mutant

OPS = "adapt_kernels/ops"
CASES = "tests/ops/triton_mode_sample_cases.py"
FILTERS, READ, NUMBERS, MODES, LAYOUT, CLASSES = (
    (f"{CASES}::Test{name}",) for name in ("Filters", "Read", "Numbers", "Modes", "Layout", "Classes")
)
NUCLEUS = ("tests/ops/triton_mode_sample_nucleus_cases.py",)
STREAM = ("tests/ops/triton_mode_sample_stream_cases.py",)


def only(section: tuple[str, ...], words: str) -> tuple[str, ...]:
    """The tests of a section that pytest's -k chooses: the others would only take time."""
    return (*section, "-k", words)


def mutants_of(stem: str, *rows: tuple) -> list[Mutant]:
    """Rows of one file: original, mutated, what it breaks, tests, why it is equivalent if it is."""
    return [Mutant(f"{OPS}/{stem}.py", *row) for row in rows]


MUTANTS = [
    *mutants_of(
        "mode_sample/triton_read",
        (
            "finite = tl.sum((x > NEG_INF).to(tl.int32))",
            "finite = tl.sum((x >= NEG_INF).to(tl.int32))",
            "NaN, -inf and what lies past the row count as finite",
            only(READ, "values"),
        ),
        (
            "base = tl.minimum(tl.program_id(1) * GROUPS, whole_groups - GROUPS)",
            "base = tl.program_id(1) * GROUPS",
            "the last program reads and writes past the row",
            only(READ, "values"),
        ),
        (
            "sick = (trusted == 0) | cut_by_class",
            "sick = trusted == 0",
            "classed ids of the group in which they end are not edited",
            only(CLASSES, "ids_end"),
        ),
        (
            "sick = sick | (group == tl.load(mode_ids + i) // GROUP)",
            "pass",
            "tokens that are modes of their own count twice",
            only(READ, "left_out"),
        ),
        (
            "trusted = trusted & raw_trusted",
            "pass",
            "raw log-probs of logits so large that their shift is rounded away",
            only(READ, "overflows"),
        ),
        (
            "(mass == mass) & (tl.abs(shift) < LARGEST_SHIFT)",
            "(mass == mass)",
            "masses of peaks that are large once tempered",
            READ,
        ),
        (
            "    if scale != raw_scale:\n        raw, raw_trusted",
            "    if scale == raw_scale:\n        raw, raw_trusted",
            "raw log-probs are the tempered ones",
            only(READ, "values"),
        ),
        (
            "all_equal = gate & (tl.load(bias + row * NUM_MODES + i) == INF)",
            "all_equal = gate & (tl.load(bias + row * NUM_MODES + i) == NEG_INF)",
            "an infinite bias of any other token no longer makes them equal",
            only(READ + MODES, "left_out or bias"),
        ),
        (
            "    if lowest == NEG_INF:\n        finite",
            "    if lowest > NEG_INF:\n        finite",
            "kept counts of groups with -inf",
            only(READ, "overflows"),
        ),
    ),
    *mutants_of(
        "mode_sample/triton_words",
        (
            "bits = 8 * (over & 3)",
            "bits = 8 * (over & 1)",
            "16-bit rows that begin within a word",
            only(LAYOUT, "begins"),
        ),
        (
            "b0, b1, b2, b3 = quarters(tl.load(words + GRANULE // 4))",
            "b0, b1, b2, b3 = quarters(tl.load(words))",
            "the second granule of rows that begin between two",
            only(LAYOUT, "begins"),
        ),
    ),
    *mutants_of(
        "mode_sample/triton_classes",
        (
            "inside = (group + 1) * GROUP <= source.num_classed",
            "inside = (group + 1) * GROUP < source.num_classed",
            "the last classed group where the classed ids end with it",
            only(CLASSES, "ids_end"),
        ),
        (
            "by_class(b, (pair >> 8) & 255, source)",
            "by_class(b, pair & 255, source)",
            "every other token takes its neighbour's class",
            CLASSES,
        ),
        (
            "acts = ((scale != 1.0) | (bias != 0.0)).to(tl.int32)",
            "acts = ((scale != 1.0) & (bias != 0.0)).to(tl.int32)",
            "classes that only scale or only shift",
            CLASSES,
        ),
        (
            "tl.max(tl.where(kind == 0, acts, 0)) != 0",
            "tl.max(tl.where(kind == 1, acts, 0)) != 0",
            "class 0 of tiles that hold no other class",
            only(CLASSES, "ids_end"),
        ),
    ),
    *mutants_of(
        "mode_sample/triton_gate",
        (
            "gone = (x == NEG_INF) | (tl.load(source.bias + kind) == NEG_INF)",
            "gone = x == NEG_INF",
            "a class ban of +inf",
            CLASSES,
            "+inf times a scale plus -inf is NaN, which every reader takes for -inf",
        ),
        (
            "gone = (x == NEG_INF) | (tl.load(source.bias + kind) == NEG_INF)",
            "gone = tl.load(source.bias + kind) == NEG_INF",
            "a negative class scale of -inf",
            CLASSES,
        ),
        (
            "return tl.where(mask & (x == x), x, NEG_INF)",
            "return tl.where(mask, x, NEG_INF)",
            "NaN is a logit",
            only(FILTERS, "nasty and V31"),
        ),
        (
            "tl.where(shift == NEG_INF, NEG_INF, z + shift)",
            "z + shift",
            "a bias of -inf on +inf is NaN",
            only(MODES, "open or bias"),
        ),
        (
            "below = tl.where(w == peak, 0.0, w - peak)",
            "below = w - peak",
            "rows with +inf",
            only(READ, "values and fp16"),
        ),
        (
            "NEG_INF, below / temperature)",
            "NEG_INF, below * temperature)",
            "temperature",
            only(FILTERS, "nasty and V31"),
        ),
        (
            "return logits + row * row_stride",
            "return logits + (row * row_stride).to(tl.int32)",
            "offsets are no longer 64 bits wide",
            only(LAYOUT, "past"),
        ),
        (
            "(row // rows_per_batch) * batch_stride + (row % rows_per_batch) * row_stride",
            "(row % rows_per_batch) * batch_stride + (row // rows_per_batch) * row_stride",
            "rows of three-dimensional logits",
            only(LAYOUT, "strides"),
        ),
        (
            "    if per_row is None:\n        return value.to(tl.int64)\n",
            "    if per_row is None:\n        return value.to(tl.int32).to(tl.int64)\n",
            "the upper half of a call's seed",
            only(NUMBERS, "seed"),
        ),
        (
            "top = tl.where(here, tl.maximum(top, y), top)",
            "pass",
            "groups whose best token is a mode of its own are not read again",
            only(MODES, "partial_group"),
        ),
        (
            "shift = tl.where(gate, tl.sum(tl.where(index == OTHER, mode_bias, 0.0)), 0.0)",
            "shift = tl.sum(tl.where(index == OTHER, mode_bias, 0.0))",
            "rows that are not at their mode token are biased",
            only(MODES, "bias_of_each"),
        ),
        (
            "w_group = tl.where(gate, NEG_INF, w_group)",
            "pass",
            "restricted rows keep every token's mass",
            MODES,
        ),
        (
            "wanted = tl.log(p) - tl.log(1.0 - p) + rest_mass",
            "wanted = tl.log(p) + rest_mass",
            "fast_prob",
            only(MODES, "fast"),
        ),
        (
            "tl.where(total > 0.0, mass / total, 0.0)",
            "mass / total",
            "mode_probs where every mode is -inf",
            only(MODES, "nasty"),
        ),
    ),
    *mutants_of(
        "mode_sample/triton_groups",
        (
            'cut = tl.where(shift == NEG_INF, float("nan"), cut)',
            "pass",
            "a bias of -inf leaves +inf in the kept set",
            only(MODES, "open or each"),
        ),
        (
            "chosen = (peaks >= cut) & (peaks > NEG_INF)",
            "chosen = (peaks > cut) & (peaks > NEG_INF)",
            "a group whose best token is the last that is kept",
            NUMBERS,
        ),
        (
            "gumbel(seed, step, PURPOSE_GROUP, g), NEG_INF)",
            "gumbel(seed, step, PURPOSE_GROUP, slot), NEG_INF)",
            "a group's noise depends on its place in the list",
            NUMBERS,
        ),
        (
            "mass = tl.load(masses + group, mask=group < num_groups, other=0.0)",
            "mass = tl.load(masses + group, mask=group < num_groups, other=1.0)",
            "groups past the row are drawn",
            only(NUMBERS, "scalar"),
        ),
        (
            "        if top > best_score:\n",
            "        if top >= best_score:\n",
            "greedy ties between far groups go to the highest id",
            only(NUMBERS, "far_groups"),
        ),
        (
            "here = (g == home) & (slot < num_listed)",
            "here = g == home",
            "the first group's listed token counts once more per free place",
            MODES,
        ),
    ),
]
