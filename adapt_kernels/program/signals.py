"""Signals: numbers of one step's logits that rules may ask for, and what each needs."""

from dataclasses import dataclass

from adapt_kernels.program.patterns import Resolver

PLAIN = ("entropy", "certainty", "top1", "logp")


@dataclass(frozen=True)
class Signal:
    """A number per row and step, of the model's own distribution at T = 1, before any bias.

    entropy in nats; certainty = 1 - entropy / ln V; top1 = the largest probability; logp = log-probability of the last
    token; margin = best log-probability minus the best one in `ids`; rank of the best of `ids`, 1 = the top; conf =
    minus the mean of the `top` largest log-probabilities.
    """

    name: str
    kind: str
    ids: tuple[int, ...] = ()
    top: int = 0


def parse_signal(name: str, resolver: Resolver, label: str) -> Signal | None:
    """The signal of a register's name; None where the name is a row input or a probe's result.

    "margin:SET" and "rank:SET" take ids with commas between them, or one token's text. Raises ValueError for a name
    with a colon that is no signal.
    """
    if name in PLAIN:
        return Signal(name, name)
    kind, colon, argument = name.partition(":")
    if not colon:
        return None
    if kind == "conf" and argument.isdecimal() and int(argument) > 0:
        return Signal(name, kind, top=int(argument))
    if kind in ("margin", "rank") and argument:
        numbers = argument.split(",")
        ids = [int(each) for each in numbers] if all(each.isdecimal() for each in numbers) else argument
        return Signal(name, kind, ids=resolver.ids(ids, f"{label} {name!r}"))
    raise ValueError(f"{label}: unknown signal {name!r}; there are {', '.join(PLAIN)}, margin:SET, rank:SET and conf:k")
