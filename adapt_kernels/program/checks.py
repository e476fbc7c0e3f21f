"""Programs that cannot mean what they say, refused when they are built."""

from adapt_kernels.program.clauses import Range, RowInput, When
from adapt_kernels.program.resolved import RuleTokens, SpanTokens, registers_of
from adapt_kernels.program.rules import Bias, Force, Gate, Probe, Rule, label_of


def check_program(
    spans: dict[str, SpanTokens], rules: tuple[Rule, ...], tokens: tuple[RuleTokens, ...], signals
) -> None:
    """Raises ValueError that names the rule. A `mode` that no gate has may be one of the model: it is checked later."""
    probed = {rule.into for rule in rules if isinstance(rule, Probe)}
    for index, (rule, own) in enumerate(zip(rules, tokens, strict=True)):
        label = label_of(index, rule)
        if rule.when.span is not None and rule.when.span not in spans:
            known = ", ".join(map(repr, spans)) or "none"
            raise ValueError(f"{label}: 'in' names the span {rule.when.span!r}; the program's spans are {known}")
        if isinstance(rule, Probe) and rule.into in signals:
            raise ValueError(f"{label}: 'into' {rule.into!r} is the name of a signal: choose another")
        if isinstance(rule, Force):
            _check_ends(label, rule, own, spans)
        if isinstance(rule, Gate):
            _check_gate(label, rule, own, rules, tokens)
    ordinary = {name for rule in rules for name in registers_of(rule)} - set(signals) - probed
    for name in ordinary:
        if name in ("p", "count", "total", "entry", "left", "at"):
            raise ValueError(f"the register {name!r} is a clause of 'when', not a number that rows bring")


def check_call(rules: tuple[Rule, ...], min_new_tokens: int) -> None:
    """Raises ValueError for a rule that may end a row before the call's min_new_tokens."""
    for index, rule in enumerate(rules):
        if isinstance(rule, Force) and rule.stop and _earliest(rule.when) < min_new_tokens:
            raise ValueError(
                f"{label_of(index, rule)} stops the row and may do so before min_new_tokens={min_new_tokens}: add"
                f" 'at': [{min_new_tokens}, null] to its 'when', or lower min_new_tokens"
            )


def _earliest(when: When) -> float:
    """A position before which the rule cannot act. A span's tokens and visits are all generated before it."""
    lows = [when.ranges[name].low for name in ("at", "count", "total") if name in when.ranges]
    return max((low for low in lows if isinstance(low, (int, float))), default=0)


def _check_ends(label: str, rule: Force, own: RuleTokens, spans: dict[str, SpanTokens]) -> None:
    """A force on a level that it does not itself end would start again after its last token, for ever."""
    when = rule.when
    if rule.stop or when.has_edge:
        return
    if when.span is not None:
        span = spans[when.span]
        ends = [span.close, span.breaks] if when.inside else [span.open]
        if any(each is not None and each.completes(own.sequence) for each in ends):
            return
    raise ValueError(
        f"{label} would start again for ever: its sequence does not end the span it acts in, and 'when' has no"
        " 'after', 'drawn', 'every' or 'times' and no upper end of 'at', 'count' or 'total'. Add 'times': 1, or force"
        " the span's closing tokens"
    )


def _check_gate(label: str, gate: Gate, own: RuleTokens, rules, tokens) -> None:
    ids = dict(zip(own.choices, own.choices.token_ids, strict=True))
    banned: set[int | None] = {ids[name] for name in ids if gate.bias.get(name) == float("-inf")}
    for rule, other in zip(rules, tokens, strict=True):
        if isinstance(rule, Bias) and rule.action == "ban" and _may_meet(rule, gate):
            banned.update(other.ids)
    if banned.issuperset(ids.values()):
        raise ValueError(
            f"{label}: every mode is banned, {ids}: leave one of their ids out of the bans, or let these act elsewhere"
        )


def _may_meet(ban: Bias, gate: Gate) -> bool:
    """Whether nothing in the clauses keeps a ban away from a gate's step; edges of another kind count as away."""
    one, two = ban.when, gate.when
    if (one.mode in gate.modes and not one.or_none) or (one.after is not None and one.after != two.after):
        return False
    if one.span == two.span and one.span is not None and one.inside != two.inside:
        return False
    same_count = one.span == two.span
    names = ["at", "left", *(["count", "total", "entry"] if same_count else [])]
    return all(_overlap(one.ranges.get(name), two.ranges.get(name)) for name in names)


def _overlap(one: Range | None, two: Range | None) -> bool:
    if one is None or two is None:
        return True
    lows, highs = (one.low or 0, two.low or 0), (one.high, two.high)
    known = [each for each in lows if not isinstance(each, RowInput)]
    ends = [each for each in highs if not isinstance(each, RowInput)]
    # What a row brings may be anything.
    if len(known) + len(ends) < 4:
        return True
    return all(high is None or max(known) < high for high in ends)
