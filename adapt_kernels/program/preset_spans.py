"""What presets ask a tokenizer: the thought's tags, the end of a reply, one id for a tag."""

from collections.abc import Sequence

from adapt_kernels.program.rules import Span

Count = int | dict  # a number of tokens, or {"input": name}: the row's
Text = str | Sequence[str | int]  # what a rule writes


def ids_of(tokenizer, tag: str):
    """The tag where it is one token, else its bytes however they are tokenised."""
    return tag if tag in tokenizer.get_vocab() else {"text": tag}


def thought(tokenizer, think: Span | None = None) -> Span:
    """The span of the thought: as given, or `<think>` to `</think>` with `<tool_call>` as a break."""
    if think is not None:
        return think
    return Span(ids_of(tokenizer, "<think>"), ids_of(tokenizer, "</think>"), ids_of(tokenizer, "<tool_call>"))


def rules_in(span: Span, *rules: dict) -> dict:
    """A definition with the one span "think"."""
    return {"spans": {"think": span}, "rules": list(rules)}


def eos(tokenizer, given=None):
    """Ids that end a reply: as given, or the tokenizer's; None where there are none."""
    if given is not None:
        return given
    token = getattr(tokenizer, "eos_token_id", None)
    return None if token is None else token


def single(tokenizer, pattern) -> int:
    """The one id of a tag. Raises ValueError where it is several."""
    if isinstance(pattern, int):
        return pattern
    vocabulary = tokenizer.get_vocab()
    if isinstance(pattern, str) and pattern in vocabulary:
        return vocabulary[pattern]
    raise ValueError(
        f"this preset needs a closing tag that is one token; got {pattern!r}: give think=Span(open, close)"
    )
