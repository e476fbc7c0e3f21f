"""Random programs over the ids of the golden traces, dense in the ids and clauses that meet each other."""

from adapt_kernels.program.rules import ModeSpan

PIECES = ["<p>", "<t>", "</t>", "\n", ".\n\n", "wait", "<e>", "<c>", "a", "b", "c", "</", "t", ">", ".</", " Wait"]
SPECIAL = [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14]

PAIRS = [{"seq": [[5, 9]]}, {"seq": [[2, 3], [5, 4]]}, {"seq": [[4, 4, 2]]}]  # closes that are often half written


def token(rng):
    return rng.choice(SPECIAL) if rng.random() < 0.8 else rng.randrange(len(PIECES))


def pattern(rng, ids_only=False):
    draw = rng.random()
    if draw < 0.5:
        return token(rng)
    if draw < 0.65:
        return [token(rng) for _ in range(rng.randint(1, 3))]
    if draw < 0.72:
        return rng.choice(["</t>", "wait", "\n"])
    if draw < 0.8:
        return rng.choice([{"ends": "\n"}, {"word": ["wait", "a"]}])
    if ids_only:
        return token(rng)
    if draw < 0.9:
        return {"seq": [[token(rng) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 2))]}
    return rng.choice([{"text": "</t>"}, {"text": "\n\n"}, [{"text": "</t>"}, 6]])


def span(rng):
    own = {"open": rng.choice([1, 1, 5, pattern(rng)]), "close": rng.choice([2, {"text": "</t>"}, *PAIRS, *PAIRS])}
    if rng.random() < 0.4:
        own["breaks"] = rng.choice([7, pattern(rng)])
    if rng.random() < 0.2:
        own["prompt"] = True
    if rng.random() < 0.3:
        own |= {"restarts": True, "close": rng.choice([*PAIRS, {"seq": [[5, 1]]}, {"seq": [[1, 8]]}])}
        own["open"] = None if rng.random() < 0.2 else own["open"]
    return own


def interval(rng, top=6):
    if rng.random() < 0.3:
        return rng.randrange(top)
    low = rng.choice([None, rng.randrange(top)])
    return [low, rng.choice([None, (low or 0) + rng.randint(1, 4)])]


def when(rng, spans, modes, drawn):
    own = {}
    if spans and rng.random() < 0.5:
        name = rng.choice(spans)
        own["in"] = name if rng.random() < 0.85 else "!" + name
    if modes and rng.random() < 0.15:
        own["mode"] = rng.choice([*modes, *([mode, None] for mode in modes)])
    if rng.random() < 0.2:
        own["at"] = rng.choice([interval(rng), rng.randint(1, 8)])
    if rng.random() < 0.3:
        own["after"] = pattern(rng)
    if rng.random() < 0.25:
        own["count"] = rng.choice([interval(rng), [rng.randrange(5), None], [{"input": "n"}, None]])
    if "in" in own:
        if not own["in"].startswith("!") and rng.random() < 0.15:
            own["total"] = [rng.randrange(5), None]
        if rng.random() < 0.1:
            own["entry"] = interval(rng, 3)
        if rng.random() < 0.15:
            own["every"] = rng.choice([2, 3, {"input": "n"}])
    if rng.random() < 0.1:
        own["left"] = [None, rng.randint(1, 8)]
    if rng.random() < 0.1:
        own["if"] = {rng.choice(["entropy", "C"]): rng.choice([[0.5, None], [None, 0.5], [0.25, 0.75]])}
    if rng.random() < 0.25:
        own["times"] = rng.randint(1, 2)
    if drawn:
        own["drawn"] = rng.choice([pattern(rng), [3, 4, 5, 8, 9], SPECIAL])
    return own


def rule(rng, spans, modes):
    kind = rng.choice(["force", "force", "force", "force", "force", "bias", "bias", "sample", "probe", "probe", "gate"])
    own = {}
    if kind == "force":
        length = rng.randint(0, 2)
        own["force"] = rng.choice(
            [[], [token(rng) for _ in range(length)], [3, 2], ["\n", "\n", "</t>"], [2], {"input": "s"}]
        )
        if own["force"] == [] or rng.random() < 0.3:
            own["stop"] = True
        if rng.random() < 0.2:
            own["wait"] = False
    elif kind == "bias":
        own |= {"bias": pattern(rng, ids_only=True), "by": rng.choice(["ban", "only", -3, 1.5, {"scale": 0.5}])}
    elif kind == "sample":
        own["sample"] = {"temperature": 0.5}
    elif kind == "probe":
        own |= {"probe": [3], "max": 4, "measure": "mean_prob", "into": "C"}
    else:
        own["gate"] = rng.choice(
            [
                {"x": 1, "y": None},
                {"x": 2, "z": 5},
                {"x": {"seq": [[1, 3, 2, 3]]}, "y": {"seq": [[1, 3, 8]]}},
                {"z": {"seq": [[5, 9]]}, "x": 8},
            ]
        )
    own["when"] = when(rng, spans, modes, drawn=kind in ("force", "probe") and rng.random() < 0.4)
    if rng.random() < 0.2:
        own["p"] = rng.choice([0.5, 0.0, 1.0, {"ramp": ["C", 0.2, 0.8]}])
    if "after" in own["when"] and rng.random() < 0.4:
        own["hold"] = rng.choice([2, 3, "span"]) if "in" in own["when"] else rng.choice([2, 3])
    if kind == "force" and "drawn" not in own["when"] and rng.random() < 0.3:
        own["settle"] = {"on": pattern(rng), "within": rng.randrange(4)}
    return own


def definition(rng):
    spans = {name: span(rng) for name in rng.choice([[], ["u"], ["u"], ["u", "v"]])}
    gated = rng.random() < 0.4
    rules = [rule(rng, list(spans), ["x"] if gated else []) for _ in range(rng.randint(1, 5))]
    if gated:
        rules.insert(
            0, {"gate": {"x": 1, "y": None}, "when": rng.choice([{"at": 0}, {"after": pattern(rng), "times": 1}])}
        )
    return {"spans": spans, "rules": rules}


def as_given(definition):
    """The definition for `Program`, with the spans that restart as those of modes."""
    spans = {name: dict(span) for name, span in definition["spans"].items()}
    return definition | {
        "spans": {name: ModeSpan(**span) if span.pop("restarts", False) else span for name, span in spans.items()}
    }
