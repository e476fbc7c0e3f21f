"""Mutants of mode_sample's C++; see mode_sample_mutants.py."""

from mutant import Mutant


def native(stem: str, words: str) -> tuple[str, ...]:
    """The native cases of tests/ops/test_<stem>.py that pytest's -k chooses."""
    return (f"tests/ops/test_{stem}.py", "-k", f"native and ({words})")


CORNERS, KEPT, GATE, STREAM, PLAIN, CLASSES = (
    f"mode_sample{part}" for part in ("_corners", "_kept", "_gate", "_stream", "", "_classes")
)
ROWS = (
    (
        "csrc/cpu/mode_sample.cpp",
        "for (int64_t j = i; j < vocab_size; ++j) v",
        "for (int64_t j = i; j + 1 < vocab_size; ++j) v",
        "the last token of a row",
        native(CORNERS, "test_row"),
    ),
    (
        "csrc/cpu/mode_sample.cpp",
        "return is_nan ? splat(-__builtin_inff()) : v;",
        "return is_nan ? splat(0.0f) : v;",
        "NaN is a logit of 0",
        native(CORNERS, "test_row"),
    ),
    (
        "csrc/cpu/mode_sample.cpp",
        "(any_nan ? kFlagNan : 0) | (peak == __builtin_inff() ? kFlagInf : 0);",
        "(any_nan ? kFlagNan : 0);",
        "the flag of +inf",
        native(CORNERS, "test_row"),
    ),
    (
        "csrc/cpu/mode_sample.cpp",
        ": row_seed(uint64_t(a.seeds.value), uint64_t(row));",
        ": uint64_t(a.seeds.value);",
        "all rows of a call share a seed",
        native(STREAM, "int_seed"),
    ),
    (
        "csrc/cpu/mode_sample.cpp",
        "const int64_t offset = (i / a.inner)",
        "const int32_t offset = (i / a.inner)",
        "offsets are no longer 64 bits wide",
        (*native(PLAIN, "beyond"), "-m", "full"),
    ),
    (
        "csrc/include/adapt/philox.h",
        "c2 = step, c3 = purpose;",
        "c2 = step, c3 = 0;",
        "groups and tokens share their noise",
        native(STREAM, "published"),
    ),
    (
        "csrc/cpu/row.h",
        "(kept == 0 || *mass < wanted || sorted[kept] == sorted[kept - 1])",
        "(kept == 0 || *mass < wanted)",
        "ties at p are parted",
        native(KEPT, "tie or sort_says"),
        "only the value it ends at is read, and all from that value up are kept",
    ),
    (
        "csrc/cpu/row.h",
        "(kept == 0 || *mass < wanted ||",
        "(kept == 0 || *mass <= wanted ||",
        "a mass of exactly p",
        native(KEPT, "exactly"),
    ),
    (
        "csrc/cpu/row.h",
        "bool limits_p() const { return !restricted() && top_p < 1; }",
        "bool limits_p() const { return top_p < 1; }",
        "top-p acts on a mode token",
        native(GATE, "restricted_row or other"),
    ),
    (
        "csrc/cpu/cuts.cpp",
        "        if (row.x[i] >= lower) numbers.push_back(row.x[i]);",
        "        if (row.x[i] > lower) numbers.push_back(row.x[i]);",
        "the k-th largest where it is a group's maximum",
        native(KEPT, "top_survives"),
    ),
    (
        "csrc/cpu/cuts.cpp",
        "if (std::exp(t.y(float_of_key(middle))) >= s.min_p) kept = middle;",
        "if (std::exp(t.y(float_of_key(middle))) > s.min_p) kept = middle;",
        "a weight of exactly min-p",
        native(KEPT, "exactly"),
    ),
    (
        "csrc/cpu/masses.cpp",
        "bound[g] = tempered_matters ? tempered_mass * 1.001",
        "bound[g] = tempered_matters ? tempered_mass * 0.5",
        "groups that may win are passed over",
        native(STREAM, "published or far_below"),
    ),
    (
        "csrc/cpu/nucleus.cpp",
        "const i32x8 over = v > bracket.high,",
        "const i32x8 over = v >= bracket.high,",
        "tokens at the upper end of the bracket count above it",
        native(KEPT, "151936"),
        "they are counted once all the same, and a cut among them is found by the pass above the bracket",
    ),
    (
        "csrc/cpu/nucleus.cpp",
        "      count -= over;\n",
        "",
        "kept counts of tokens above the bracket",
        native(KEPT, "151936"),
    ),
    (
        "csrc/cpu/nucleus.cpp",
        "cut->decided = kept > 0 && mass - wanted > error && (wanted - before > error || before == 0);",
        "cut->decided = kept > 0;",
        "a cut closer than float32 sums is never weighed in float64",
        native(KEPT, "closer"),
    ),
    (
        "csrc/cpu/exact_row.cpp",
        "if (s.only_modes && !listed) y[i] = -kInf;",
        "if (!listed) y[i] = -kInf;",
        "rows that are biased, not restricted, lose all other tokens",
        native(GATE, "unrestricted"),
    ),
    (
        "csrc/cpu/exact_row.cpp",
        "y[i] = (y[i] - peak) / scale;",
        "y[i] = (y[i] - peak) * scale;",
        "temperature of biased rows",
        native(GATE, "unrestricted"),
    ),
    (
        "csrc/cpu/fast_row.cpp",
        ": t.y(x) - std::log(cut.kept_mass);",
        ": t.y(x) - std::log(mass);",
        "log-probs do not know of the filters",
        native(PLAIN, "logprobs"),
    ),
    (
        "csrc/cpu/fast_row.cpp",
        "if (s.greedy()) r.kept = 1;",
        "",
        "kept counts of greedy mode tokens",
        native(GATE, "greedy"),
    ),
    (
        "csrc/cpu/class_bias.cpp",
        "row.finite += int64_t(x > -__builtin_inff()) - int64_t(before > -__builtin_inff());",
        "",
        "kept counts of banned tokens",
        native(CLASSES, "ban or flat"),
    ),
)
MUTANTS = [Mutant(*row) for row in ROWS]
