"""The five kinds of rules, and spans, as frozen data; `parse_rule` reads their JSON form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from adapt_kernels.program.clauses import (
    Ramp,
    RowInput,
    When,
    check_keys,
    number,
    parse_chance,
    parse_hold,
    parse_when,
    row_input,
    whole,
)

KINDS = ("gate", "force", "sample", "probe", "bias")  # a rule's kind is the first of these among its keys
MEASURES = ("mean_prob", "geometric_prob", "certainty")
STOPS = ("hold", "end")
_BESIDE = {"when", "p", "hold"}
Shared = tuple[When, float | Ramp | None, int | str]  # the fields of a Rule


@dataclass(frozen=True)
class Span:
    """A stretch of the generation that tokens open and close, whoever wrote them.

    open, close, breaks: token patterns (`adapt_kernels.program.patterns`); breaks are implicit ends. stops: "hold" =
    stop strings sleep inside, "end" = they end the row there too. prompt: count the prompt's tokens inside as well.
    """

    open: object
    close: object
    breaks: object = None
    stops: str = "hold"
    prompt: bool = False

    def __post_init__(self):
        if self.stops not in STOPS:
            raise ValueError(f"a span's stops must be one of {', '.join(map(repr, STOPS))}; got {self.stops!r}")
        if not isinstance(self.prompt, bool):
            raise ValueError(f"a span's prompt must be true or false; got {self.prompt!r}")
        for name in ("open", "close"):
            if getattr(self, name) is None:
                raise ValueError(f"a span needs {name!r}, the tokens that {name} it")


@dataclass(frozen=True)
class ModeSpan(Span):
    """What a mode of the model holds: no token need open it, where the choice of the mode does; its close is read from
    there on."""

    def __post_init__(self):
        """Made of checked modes."""


@dataclass(frozen=True)
class Rule:
    """What every rule has: when it acts, with which chance, and how long an `after` edge stays true."""

    when: When
    chance: float | Ramp | None
    hold: int | str


@dataclass(frozen=True)
class Gate(Rule):
    """A choice among modes. prob: exact probability of the first mode, None = the model's under `bias`, logit units."""

    modes: Mapping[str, object]
    bias: Mapping[str, float]
    prob: float | None


@dataclass(frozen=True)
class Force(Rule):
    """Writes a sequence, and ends the row after it with `stop`; begins while the close of its span is half written only
    without `wait`."""

    sequence: object
    settle: object = None
    within: int = 0
    stop: bool = False
    wait: bool = True


@dataclass(frozen=True)
class Sample(Rule):
    """Sampling settings while true; fields that are None are the call's. surprise, rate: Mirostat's tau and eta;
    renormalise: the surprise of the renormalised probability (llama.cpp's v2); zipf: v1, its vocabulary estimate."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    surprise: float | None = None
    rate: float | None = None
    renormalise: bool = False
    zipf: bool = False


@dataclass(frozen=True)
class Probe(Rule):
    """A side decode of `text` and at most `most` tokens until `until`; `measure` of what was drawn goes `into` a
    register. skip: drawn tokens left out of the measure; complete: 0 where `until` did not come."""

    text: object
    most: int
    until: object
    measure: str
    into: str
    skip: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Bias(Rule):
    """Edits the logits of a set of ids: adds `add`, or scales, bans, or restricts to it ("ban", "only", "scale")."""

    tokens: object
    action: str
    amount: float = 0.0


def parse_span(name: str, given) -> Span:
    """A span of the JSON form, or a `Span` as it is."""
    if not isinstance(name, str) or not name or name.startswith("!"):
        raise ValueError(f"a span's name must be a text that does not begin with '!'; got {name!r}")
    if isinstance(given, Span):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"spans[{name!r}] must be an object with 'open' and 'close'; got {given!r}")
    check_keys(given, {"open", "close", "breaks", "stops", "prompt"}, f"spans[{name!r}]")
    try:
        return Span(
            given.get("open"), given.get("close"), **{k: v for k, v in given.items() if k not in ("open", "close")}
        )
    except ValueError as error:
        raise ValueError(f"spans[{name!r}]: {error}") from None


def parse_rule(index: int, given) -> Rule:
    """One rule of the JSON form. Raises ValueError that names the rule and what is wrong."""
    if not isinstance(given, Mapping):
        raise ValueError(f"rules[{index}] must be an object; got {given!r}")
    kind = next((kind for kind in KINDS if kind in given), None)
    if kind is None:
        raise ValueError(f"rules[{index}] has none of the keys {', '.join(KINDS)}; got {sorted(map(str, given))}")
    label = f"rules[{index}] ({kind})"
    parse, keys = _PARSERS[kind]
    check_keys(given, {kind, *keys, *_BESIDE}, label)
    when = parse_when(given.get("when", {}), label)
    if when.drawn is not None and kind not in ("force", "probe"):
        raise ValueError(f"{label}: 'drawn' acts after the draw, so only force and probe can have it")
    shared = (when, parse_chance(given.get("p"), label), parse_hold(given.get("hold"), when, label))
    return parse(given, shared, label)


def label_of(index: int, rule: Rule) -> str:
    """How errors and reports name a rule."""
    return f"rules[{index}] ({type(rule).__name__.lower()})"


def _gate(given, shared: Shared, label: str) -> Gate:
    modes = given["gate"]
    if not isinstance(modes, Mapping) or len(modes) < 2:
        raise ValueError(f"{label}: a gate is an object of at least two modes, name: token or null; got {modes!r}")
    if "bias" in given and "prob" in given:
        raise ValueError(f"{label}: 'bias' and 'prob' both set P(mode): give one of them")
    return Gate(
        *shared, modes=dict(modes), bias=_by_mode(given.get("bias", 0.0), modes, label), prob=_prob(given, modes, label)
    )


def _by_mode(bias, modes, label: str) -> dict[str, float]:
    if not isinstance(bias, Mapping):
        bias = {next(iter(modes)): bias}
    check_keys(bias, set(modes), f"{label} 'bias'")
    for value in bias.values():
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ValueError(f"{label}: 'bias' takes logit units, a number or one per mode; got {value!r}")
    return {name: float(value) for name, value in bias.items()}


def _prob(given, modes, label: str) -> float | None:
    prob, names = given.get("prob"), list(modes)
    if isinstance(prob, Mapping):
        check_keys(prob, set(modes), f"{label} 'prob'")
        if len(prob) != 1 or (names[0] not in prob and len(names) > 2):
            raise ValueError(f"{label}: 'prob' fixes P of the first mode, {names[0]!r}; got {dict(prob)!r}")
        [(name, prob)] = prob.items()
        prob = prob if name == names[0] else 1 - number(prob, f"{label} 'prob'")
    if prob is None:
        return None
    if not 0 < number(prob, f"{label} 'prob'") < 1:
        raise ValueError(f"{label}: 'prob' must be inside (0, 1); got {prob!r}")
    return float(prob)


def _force(given, shared: Shared, label: str) -> Force:
    stop, wait = _flag(given, "stop", label), _flag(given, "wait", label, default=True)
    sequence = row_input(given["force"], label) or given["force"]
    if not isinstance(sequence, (str, list, tuple, RowInput)):
        raise ValueError(
            f"{label}: a forced sequence is a text, a list of ids and texts, or a row input; got {sequence!r}"
        )
    if not isinstance(sequence, RowInput) and len(sequence) == 0 and not stop:
        raise ValueError(f"{label}: an empty sequence writes nothing: give ids, or 'stop': true to end the row")
    if "settle" not in given:
        return Force(*shared, sequence, stop=stop, wait=wait)
    settle = given["settle"]
    if not isinstance(settle, Mapping) or set(settle) != {"on", "within"} or settle["on"] is None:
        raise ValueError(f"{label}: 'settle' must be {{'on': pattern, 'within': n}}; got {settle!r}")
    if shared[0].drawn is not None:
        raise ValueError(f"{label}: 'settle' waits for a token and 'drawn' replaces one: give one of them")
    return Force(*shared, sequence, settle["on"], whole(settle["within"], f"{label} 'within'"), stop, wait)


def _sample(given, shared: Shared, label: str) -> Sample:
    settings = given["sample"]
    allowed = {"temperature", "top_k", "top_p", "min_p", "surprise", "rate", "renormalise", "zipf"}
    if not isinstance(settings, Mapping) or not settings:
        raise ValueError(f"{label}: settings must be an object of {', '.join(sorted(allowed))}; got {settings!r}")
    check_keys(settings, allowed, label)
    if ("surprise" in settings) != ("rate" in settings):
        raise ValueError(f"{label}: 'surprise' and 'rate' are Mirostat's tau and eta: give both or none")
    if "surprise" in settings and set(settings) & {"top_k", "top_p", "min_p"}:
        raise ValueError(f"{label}: Mirostat sets the cut itself: leave out top_k, top_p and min_p")
    if "surprise" not in settings and set(settings) & {"renormalise", "zipf"}:
        raise ValueError(f"{label}: 'renormalise' and 'zipf' are Mirostat's: give 'surprise' and 'rate'")
    limits = {
        "temperature": (0, math.inf),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "surprise": (0, math.inf),
        "rate": (0, math.inf),
    }
    values: dict = {}
    for name, value in settings.items():
        if name in limits:
            low, high = limits[name]
            if not low <= number(value, f"{label} {name!r}") <= high:
                raise ValueError(f"{label}: {name!r} must be in [{low}, {high}]; got {value!r}")
            values[name] = float(value)
        elif name == "top_k":
            values[name] = whole(value, f"{label} 'top_k'")
        else:
            values[name] = _flag(settings, name, label)
    return Sample(*shared, **values)


def _probe(given, shared: Shared, label: str) -> Probe:
    missing = [key for key in ("max", "measure", "into") if key not in given]
    if missing:
        raise ValueError(f"{label} needs {missing[0]!r}")
    if given["measure"] not in MEASURES:
        raise ValueError(f"{label}: 'measure' must be one of {', '.join(MEASURES)}; got {given['measure']!r}")
    if not isinstance(given["into"], str) or not given["into"]:
        raise ValueError(f"{label}: 'into' must be a register's name; got {given['into']!r}")
    most, skip = whole(given["max"], f"{label} 'max'", at_least=1), whole(given.get("skip", 0), f"{label} 'skip'")
    if skip >= most:
        raise ValueError(f"{label}: 'skip' must be below 'max', {most}; got {skip}")
    complete = _flag(given, "complete", label)
    if complete and "until" not in given:
        raise ValueError(f"{label}: 'complete' needs 'until'")
    return Probe(*shared, given["probe"], most, given.get("until"), given["measure"], given["into"], skip, complete)


def _bias(given, shared: Shared, label: str) -> Bias:
    by = given.get("by")
    if by in ("ban", "only"):
        return Bias(*shared, given["bias"], by)
    if isinstance(by, Mapping) and set(by) == {"scale"}:
        return Bias(*shared, given["bias"], "scale", number(by["scale"], f"{label} 'scale'"))
    if isinstance(by, Real) and not isinstance(by, bool):
        return Bias(*shared, given["bias"], "add", number(by, f"{label} 'by'"))
    raise ValueError(f"{label}: 'by' must be a number, 'ban', 'only' or {{'scale': s}}; got {by!r}")


def _flag(given, name: str, label: str, default: bool = False) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{label}: {name!r} must be true or false; got {value!r}")
    return value


_PARSERS = {
    "gate": (_gate, {"bias", "prob"}),
    "force": (_force, {"settle", "stop", "wait"}),
    "sample": (_sample, set()),
    "probe": (_probe, {"max", "until", "measure", "into", "skip", "complete"}),
    "bias": (_bias, {"by"}),
}
