"""Published methods as programs: each a few lines of data with its source; `Program.preset(name, tokenizer, ...)`.

A setting without a default is one that no public text tells. `think` is the span of the thought, a `Span`; by default
`<think>` to `</think>`, broken by `<tool_call>`.
"""

import inspect
from collections.abc import Callable, Sequence

from adapt_kernels.program.budgets import BUDGETS
from adapt_kernels.program.clauses import whole
from adapt_kernels.program.gates import GATES
from adapt_kernels.program.preset_settings import check_settings
from adapt_kernels.program.preset_spans import Count, Text, ids_of, rules_in, single, thought
from adapt_kernels.program.rules import Span

NOWAIT = (
    *("wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check", "double-check", "oh"),
    *("maybe", "verify", "other", "again", "now", "ah", "any"),
)
CGRS = ("wait", "but", "alternatively", "alternative", "hmm")


def nowait(tokenizer, words: Sequence[str] = NOWAIT, think: Span | None = None):
    """NoWait (arXiv 2506.08343; words of its community port): these words are never drawn, in the whole reply."""
    return {"rules": [{"bias": {"word": list(words)}, "by": "ban", "when": {"in": "think"} if think else {}}]} | (
        {"spans": {"think": think}} if think else {}
    )


def tip(
    tokenizer,
    words: Sequence[str] = ("alternatively",),
    penalty: float = 3.0,
    tokens: int = 600,
    think: Span | None = None,
):
    """TIP, arXiv 2501.18585: a penalty on thought switches in the first tokens of a thought (alpha and beta as they are
    commonly quoted, not checked against the paper)."""
    span = thought(tokenizer, think)
    switch = {"word": list(words)}
    rule = {"bias": switch, "by": -penalty, "when": {"in": "think", "after": [switch, span.open]}, "hold": tokens}
    return rules_in(span, rule)


def cgrs(
    tokenizer,
    probe_tokens: int,
    words: Sequence[str] = CGRS,
    threshold: float = 0.9,
    text: Text = "**Final Answer: \\boxed",
    think: Span | None = None,
):
    """CGRS, arXiv 2508.05337: where a probe of the answer is certain, reflection words are banned with that chance."""
    return rules_in(
        thought(tokenizer, think),
        {
            "probe": text,
            "max": probe_tokens,
            "measure": "certainty",
            "into": "certain",
            "when": {"in": "think", "after": {"text": "\n\n"}},
        },
        {
            "bias": {"word": list(words)},
            "by": "ban",
            "when": {"in": "think"},
            "p": {"ramp": ["certain", threshold, 1.0]},
        },
    )


def deer(
    tokenizer,
    threshold: float = 0.95,
    kind: str = "r1",
    tokens: Count | None = None,
    closing: Text = "\n</think>\n\n",
    think: Span | None = None,
):
    """DEER, arXiv 2504.15895 and its code: at a drawn "Wait" the answer is probed, and a sure one closes the thought.

    kind: "r1" (arithmetic mean of the drawn probabilities up to `}`) or "qwen3" (geometric mean, 0 unless the thought
    closes). tokens: the cap of the thought; the code takes 0.9 of the call's tokens.
    """
    span = thought(tokenizer, think)
    if kind not in ("r1", "qwen3"):
        raise ValueError(f"preset 'deer': kind must be 'r1' or 'qwen3'; got {kind!r}")
    ends = {"measure": "mean_prob", "until": {"text": "}"}, "skip": 1}
    if kind == "qwen3":
        ends = {"measure": "geometric_prob", "until": span.close, "skip": 1, "complete": True}
    wait: dict = {"in": "think", "drawn": {"word": ["wait"]}}
    probe = {"probe": "\n**Final Answer**\n\\boxed", "max": 20, **ends, "into": "sure", "when": {**wait, "times": 10}}
    sure = {"force": closing, "when": {**wait, "if": {"sure": [threshold, None]}}}
    cap = [] if tokens is None else [{"force": closing, "when": {"in": "think", "count": [tokens, None]}}]
    return rules_in(span, probe, sure, *cap)


def stop_bias(tokenizer, by: float | dict, think: Span | None = None):
    """Stop-token scaling, arXiv 2505.07961 (its formula is not public): the logit of the closing token, in the thought.

    by: logit units to add, or {"scale": s}; and270/thinking_effort_processor multiplies by 2 ** (1 - effort).
    """
    span = thought(tokenizer, think)
    return rules_in(span, {"bias": span.close, "by": by, "when": {"in": "think"}})


def alphaone(
    tokenizer, p: float | dict = 0.6, slow_tokens: Count = 3710, first_tokens: Count = 0, think: Span | None = None
):
    """AlphaOne, arXiv 2505.24863 (MLX port): after a blank line "wait" with a chance, until 1.4 x 2650 tokens; then a
    drawn "wait" closes the thought. The port's chance also falls with the tokens that are left; p is its last value."""
    span = thought(tokenizer, think)
    wait = {"word": ["wait"]}
    return rules_in(
        span,
        {
            "bias": wait,
            "by": "only",
            "when": {"in": "think", "after": {"ends": "\n\n"}, "count": [first_tokens, slow_tokens]},
            "p": p,
        },
        {
            "force": [single(tokenizer, span.close)],
            "when": {"in": "think", "drawn": wait, "count": [slow_tokens, None]},
        },
    )


def mirostat(tokenizer, version: int = 2, surprise: float = 3.0, rate: float = 1.0):
    """Mirostat, arXiv 2007.14966: version 1 cuts by Zipf's law, version 2 (llama.cpp) at 2 ** -mu, renormalised."""
    if version not in (1, 2):
        raise ValueError(f"preset 'mirostat': version must be 1 or 2; got {version!r}")
    form = {"zipf": True} if version == 1 else {"renormalise": True}
    return {"rules": [{"sample": {"surprise": surprise, "rate": rate, **form}}]}


def e2c(tokenizer, temperature: float | None = None, explore: str = "EXPLORATION", execute: str = "EXECUTION"):
    """E2C, arXiv 2509.23946: explores with the call's temperature (or this one) and executes greedily."""
    spans = {
        name: {"open": ids_of(tokenizer, f"<{tag}>"), "close": ids_of(tokenizer, f"</{tag}>")}
        for name, tag in (("explore", explore), ("execute", execute))
    }
    drawn = [] if temperature is None else [{"sample": {"temperature": temperature}, "when": {"in": "explore"}}]
    return {"spans": spans, "rules": [*drawn, {"sample": {"temperature": 0.0}, "when": {"in": "execute"}}]}


def thinkbrake(tokenizer, threshold: float = 1.0, closing: Text = "\n</think>\n\n", think: Span | None = None):
    """ThinkBrake, arXiv 2510.00546: closes where the closing token is that close to the best one in log-probability."""
    span = thought(tokenizer, think)
    margin = f"margin:{single(tokenizer, span.close)}"
    return rules_in(span, {"force": closing, "when": {"in": "think", "if": {margin: [None, threshold]}}})


def ds4(
    tokenizer,
    tokens: int,
    rank: int = 3,
    hard_tokens: int = 1024,
    closing: Text = "\n</think>\n\n",
    think: Span | None = None,
):
    """ds4's soft close (PR #898): past the budget as soon as the close is among the top few, hard so many tokens on."""
    span = thought(tokenizer, think)
    close = single(tokenizer, span.close)
    cap = tokens + whole(hard_tokens, "preset 'ds4': hard_tokens")
    soft = {"in": "think", "count": [tokens, None], "if": {f"rank:{close}": [1, rank + 1]}}
    hard = {"force": closing, "when": {"in": "think", "count": [cap, None]}}
    return rules_in(span, {"bias": close, "by": "only", "when": soft}, hard)


def deepconf(tokenizer, threshold: float, window: int = 2048, top: int = 20):
    """DeepConf, arXiv 2508.15260: stops a row whose mean confidence over a window falls below the threshold."""
    signal = {f"conf:{top}": {"range": [None, threshold], "mean": window}}
    return {"rules": [{"force": [], "stop": True, "when": {"if": signal}}]}


def mind(tokenizer, turns: int = 1, think: Span | None = None):
    """MinD, arXiv 2505.19788: ends the row where a turn more than `turns` opens."""
    rule = {
        "force": [],
        "stop": True,
        "when": {"in": "think", "entry": [whole(turns, "preset 'mind': turns") + 1, None]},
    }
    return rules_in(thought(tokenizer, think), rule)


def concisehint(
    tokenizer, every: Count = 128, within: int = 64, hint: str = "make answer concise!", think: Span | None = None
):
    """ConciseHint, arXiv 2506.18810, approximately: a hint at a sentence's end every so many tokens. Its
    code puts the hint into a user turn, whose end would end the row here, and grows the distance with the text."""
    rule = {
        "force": f"-{hint}-",
        "when": {"in": "think", "every": every},
        "settle": {"on": {"ends": [". ", ", ", ".", ","]}, "within": within},
    }
    return rules_in(thought(tokenizer, think), rule)


def thoughtmani(tokenizer, think: Span | None = None):
    """ThoughtMani, arXiv 2504.13626: writes another model's thought, ids per row in the input "thought", first."""
    return {"rules": [{"force": {"input": "thought"}, "when": {"at": 0}}]}


def diffadapt(
    tokenizer,
    tokens: int,
    classes: Sequence[tuple[float, float]] = ((0.5, 0.4), (0.8, 1.0), (0.4, 0.5)),
    closing: Text = "\n</think>\n\n",
    think: Span | None = None,
):
    """DiffAdapt, arXiv 2510.19669: (temperature, share of `tokens`) by the row's input "difficulty": easy, normal,
    hard = 0, 1, 2."""
    rules: list[dict] = []
    for difficulty, (temperature, share) in enumerate(classes):
        row = {"if": {"difficulty": difficulty}}
        rules.append({"sample": {"temperature": temperature}, "when": row})
        rules.append({"force": closing, "when": {"in": "think", "count": [int(tokens * share), None], **row}})
    return rules_in(thought(tokenizer, think), *rules)


PRESETS: dict[str, Callable] = {
    **BUDGETS,
    **GATES,
    **{
        each.__name__: each
        for each in (
            *(nowait, tip, cgrs, deer, stop_bias, alphaone, mirostat, e2c, thinkbrake, ds4, deepconf, mind),
            *(concisehint, thoughtmani, diffadapt),
        )
    },
}


def preset(name: str, tokenizer, settings: dict) -> dict:
    """The definition of a preset. Raises ValueError that lists the names, or the settings of that name; TypeError for a
    setting of another type than it takes."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    build, parameters = PRESETS[name], inspect.signature(PRESETS[name]).parameters
    try:
        inspect.signature(build).bind(tokenizer, **settings)
    except TypeError as error:
        shown = ", ".join(str(each.replace(annotation=each.empty)) for each in [*parameters.values()][1:])
        raise ValueError(f"preset {name!r}: {error}; its settings are ({shown})") from None
    check_settings(name, build, settings)
    try:
        return build(tokenizer, **settings)
    except AttributeError:
        if callable(getattr(tokenizer, "get_vocab", None)):
            raise
        kind = type(tokenizer).__name__
        raise TypeError(f"preset {name!r} needs a Hugging Face tokenizer; {kind} has no get_vocab") from None
