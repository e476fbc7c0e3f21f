"""Presets that bound a thought from above or below."""

from adapt_kernels.program.preset_spans import Count, Text, eos, rules_in, thought
from adapt_kernels.program.rules import Span

# Qwen3's technical report, arXiv 2505.09388, section 4.3; the text as common code has it.
QWEN3_CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)


def budget(
    tokenizer,
    tokens: int,
    soft: float = 0.1,
    closing: Text = "\n</think>\n\n",
    answer_tokens: Count | None = None,
    think: Span | None = None,
    eos_ids=None,
):
    """A cap on every thought, with a soft landing and no lost answer.

    From `tokens` on it closes at the first line's end, at the latest `soft` of them later (NVIDIA NIM; 0 = at exactly
    `tokens`). answer_tokens: closes too where the call has fewer tokens left. An end of reply inside the thought closes
    it instead (SGLang #24839), and none comes right after it.
    """
    if soft < 0:
        raise ValueError(f"preset 'budget': soft must be >= 0, a share of tokens; got {soft}")
    span, end = thought(tokenizer, think), eos(tokenizer, eos_ids)
    cap: dict = {"force": closing, "when": {"in": "think", "count": [tokens, None]}}
    if int(tokens * soft) > 0:
        cap["settle"] = {"on": {"ends": "\n"}, "within": int(tokens * soft)}
    rules: list[dict] = [cap]
    if answer_tokens is not None:
        rules.append({"force": closing, "when": {"in": "think", "left": [0, answer_tokens]}})
    if end is not None:
        rules.append({"force": closing, "when": {"in": "think", "drawn": end}})
        rules.append({"bias": end, "by": "ban", "when": {"after": span.close}, "hold": 2})
    return rules_in(span, *rules)


def qwen3(tokenizer, tokens: Count, closing: Text = QWEN3_CLOSING, think: Span | None = None):
    """Qwen3, arXiv 2505.09388: the thought is cut at exactly `tokens` with the report's sentence."""
    return rules_in(thought(tokenizer, think), {"force": closing, "when": {"in": "think", "count": [tokens, None]}})


def s1(
    tokenizer,
    times: int = 1,
    word="Wait",
    tokens: Count | None = None,
    closing: Text = "\n</think>\n\n",
    think: Span | None = None,
    eos_ids=None,
):
    """s1's budget forcing, arXiv 2501.19393 and its code: an end of the thought is replaced by "Wait", so many times.

    tokens: a cap on the thought; then `closing` (s1's own model: "\\n<|im_start|>answer\\nFinal Answer:").
    """
    span, end = thought(tokenizer, think), eos(tokenizer, eos_ids)
    ends = span.close if end is None else [span.close, end]
    again = {"force": word, "when": {"in": "think", "drawn": ends, "times": times}}
    cap = [] if tokens is None else [{"force": closing, "when": {"in": "think", "count": [tokens, None]}}]
    return rules_in(span, again, *cap)


def min_thinking(tokenizer, tokens: Count, think: Span | None = None, eos_ids=None):
    """The thought does not end before it has so many tokens."""
    span, end = thought(tokenizer, think), eos(tokenizer, eos_ids)
    ends = span.close if end is None else [span.close, end]
    return rules_in(span, {"bias": ends, "by": "ban", "when": {"in": "think", "count": [0, tokens]}})


BUDGETS = {each.__name__: each for each in (budget, qwen3, s1, min_thinking)}
