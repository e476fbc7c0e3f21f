"""How published methods open their modes: texts only, resolved by the user's tokenizer (`Modes.preset`)."""

PRESETS: dict[str, dict[str, str | None]] = {
    # ADaPT, arXiv 2606.19919: one token, no closing tag.
    "adapt": {"fast": "<answer>", "slow": "<think>"},
    # Thinkless / DeGRPO, arXiv 2505.13379.
    "thinkless": {"fast": "<short>", "slow": "<think>"},
    # AdaptThink, arXiv 2505.13417: the prompt already opens <think>; fast closes it at once.
    "adaptthink": {"fast": "</think>", "slow": None},
    # ARM / Ada-GRPO, arXiv 2505.20258: four formats, cheapest first.
    "arm": {"answer": "<ANSWER>", "cot": "<COT>", "code": "<CODE>", "long_cot": "<LONG_COT>"},
    # AVR / FS-GRPO, arXiv 2604.14568: both longer formats open with <perception>; whether <reasoning> follows is
    # decided after </perception>, not here.
    "avr": {"answer": "<answer>", "perception": "<perception>"},
    # Qwen3's chat template: an empty think block against an open one.
    "qwen3": {"fast": "<think>\n\n</think>\n\n", "slow": "<think>\n"},
}

# The tags of the thought in the replies of those methods that close one.
THOUGHTS: dict[str, tuple[str, str]] = dict.fromkeys(("thinkless", "adaptthink", "qwen3"), ("<think>", "</think>"))

# Tags that begin a tool call: models write them inside a thought, without closing it first. A tokenizer's own are used.
TOOL_CALLS: tuple[str, ...] = (
    "<tool_call>",  # Qwen, Hermes, GLM
    "<|tool_call|>",  # Granite
    "<|tool_call_start|>",  # LFM2
    "<|tool_calls_section_begin|>",  # Kimi K2
    "<｜tool▁calls▁begin｜>",  # DeepSeek
    "<|python_tag|>",  # Llama 3
    "[TOOL_CALLS]",  # Mistral
)
