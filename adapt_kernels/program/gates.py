"""Presets that choose among formats."""

from collections.abc import Sequence

from adapt_kernels.program.preset_spans import ids_of


def _opening(tokenizer, tag: str) -> str | dict:
    """A gate's mode for a tag: its token, or the ids up to its last character, which may merge with what follows."""
    if tag in tokenizer.get_vocab():
        return tag
    return {"seq": [list(tokenizer.encode(tag[:-1], add_special_tokens=False))]}


def _gate(modes: dict, bias, prob, **when) -> dict:
    chance = {"prob": prob} if prob is not None else {"bias": bias}
    return {"gate": modes, **chance, "when": when}


def arm(tokenizer, bias: float | dict = 0.0, prob: float | None = None):
    """ARM, arXiv 2505.20258: four formats, cheapest first."""
    tags = {"answer": "<ANSWER>", "cot": "<COT>", "code": "<CODE>", "long_cot": "<LONG_COT>"}
    return {"rules": [_gate({name: _opening(tokenizer, tag) for name, tag in tags.items()}, bias, prob, at=0)]}


def adacot(tokenizer, skip, bias: float | dict = 0.0, prob: float | None = None, opening: str = "<think>"):
    """AdaCoT, arXiv 2505.11896: the first token after `<think>` decides; the empty block's, `skip`, is not public."""
    after: dict = {"text": [opening, f"{opening}\n"]}
    if opening in tokenizer.get_vocab():
        after = {"seq": [[opening], [opening, "\n"]]}
    return {"rules": [_gate({"skip": skip, "think": None}, bias, prob, after=after, times=1)]}


def autol2s(tokenizer, trigger, easy: str = "<EASY>", bias: float | dict = 0.0, prob: float | None = None):
    """AutoL2S, arXiv 2505.22662: after a drawn `<EASY>` the short form's `trigger`, whose text is not public."""
    rules: list[dict] = [{"force": trigger, "when": {"after": ids_of(tokenizer, easy), "times": 1}}]
    if bias or prob is not None:
        rules.insert(0, _gate({"easy": _opening(tokenizer, easy), "long": None}, bias, prob, at=0))
    return {"rules": rules}


def adactrl(tokenizer, bias: float | dict = 0.0, prob: float | None = None):
    """AdaCtrl, arXiv 2505.18822: the reply begins with [Easy] or [Hard]; `]` is the model's, `]\\n` is one token."""
    modes = {name.lower(): _opening(tokenizer, f"[{name}]") for name in ("Easy", "Hard")}
    return {"rules": [_gate(modes, bias, prob, at=0)]}


def avr(
    tokenizer,
    bias: float | dict = 0.0,
    reasoning_bias: float | dict = 0.0,
    separators: Sequence[str] = ("", "\n", "\n\n"),
):
    """AVR, arXiv 2604.14568: `<answer>` or `<perception>` first, and `<answer>` or `<reasoning>` after that."""
    first = {name: _opening(tokenizer, f"<{name}>") for name in ("answer", "perception")}
    tags = {name: f"<{name}>" for name in ("answer", "reasoning")}
    second: dict = tags
    if all(tag in tokenizer.get_vocab() for tag in tags.values()):
        # Tags of their own: the choice is made where the separator ends.
        after = {"text": [f"</perception>{each}" for each in separators if each]}
    else:
        after = {"text": [f"</perception>{each}<" for each in separators]}
        second = {name: {"seq": [list(tokenizer.encode(name, add_special_tokens=False))]} for name in tags}
    rules = [_gate(first, bias, None, at=0), _gate(second, reasoning_bias, None, after=after, times=1)]
    return {"rules": rules}


GATES = {each.__name__: each for each in (arm, adacot, autol2s, adactrl, avr)}
