"""What of a program a serving engine cannot do, said before a request runs."""

from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Bias, Force, Probe, Sample, label_of


def check_served(program: Program) -> None:
    """Raises ValueError for rules that need more than the tokens so far: engines move rows and compute them anew."""
    for index, rule in enumerate(program.rules):
        label = label_of(index, rule)
        if isinstance(rule, Probe):
            raise ValueError(f"{label}: a probe decodes aside, which a serving engine cannot: use generate")
        if isinstance(rule, Sample):
            raise ValueError(
                f"{label}: the engine's own sampler has the settings of the request: send temperature, top_k ... there"
            )
        if rule.when.drawn is not None:
            raise ValueError(
                f"{label}: 'drawn' replaces a token after the draw, which is the engine's, and a row that it computes"
                " anew would not know what was replaced: use 'after', or a preset with eos_ids=()"
            )
        if isinstance(rule, Force) and rule.stop:
            raise ValueError(f"{label}: 'stop' ends a row, which only the engine does: force its EOS instead")
    if program.signals:
        raise ValueError(
            f"the signal {next(iter(program.signals))!r} is of the logits of past steps, which a row that the engine"
            " computes anew no longer has: use rules over tokens, or generate"
        )
    if program.inputs:
        raise ValueError(f"it reads the row input {program.inputs[0]!r}, which requests cannot bring: write its value")
    _check_some_token_left(program)


def _check_some_token_left(program: Program) -> None:
    """The fewest tokens are left where all bias rules hold: where that is some, no step is without any."""
    sets = [
        (rule.action, set(own.ids))
        for rule, own in zip(program.rules, program.rule_tokens, strict=True)
        if isinstance(rule, Bias)
    ]
    kept = [ids for action, ids in sets if action == "only"]
    banned = set().union(*(ids for action, ids in sets if action == "ban"))
    if kept and not set.intersection(*kept) - banned:
        raise ValueError(
            "its bias rules 'only' and 'ban' leave no token where all of them hold: let one keep a token of the others"
        )
