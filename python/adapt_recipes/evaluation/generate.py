"""Answer prompts on a patched model under a mode setting, and count what the answers cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapt_recipes.models import FALLBACK_MAX_NEW_TOKENS


@dataclass(frozen=True)
class Generated:
    """What one pass of generate gave: text, token count and mode index per row, and mode_probs [rows, M].

    steered: with a program or a thinking budget, per row what rules fired, the visits of spans, rules never armed.
    """

    texts: list[str]
    tokens: list[int]
    modes: torch.Tensor
    mode_probs: torch.Tensor
    wall_s: float
    steered: list[tuple] | None = None


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int | None = None, **arguments: Any
) -> Generated:
    """Generate once for all `prompts` on a patched model; the tokenizer's chat template is used when it has one."""
    inputs = encode(tokenizer, prompts).to(model.device)
    if max_new_tokens is None and model.generation_config.max_new_tokens is None:
        max_new_tokens = FALLBACK_MAX_NEW_TOKENS
    if max_new_tokens is not None:
        arguments["max_new_tokens"] = max_new_tokens
    began = time.perf_counter()
    out = model.generate(**inputs, return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id, **arguments)
    wall_s = time.perf_counter() - began
    answers = out.sequences[:, inputs["input_ids"].shape[1] :]
    eos = model.generation_config.eos_token_id
    tokens = count_tokens(answers, [] if eos is None else eos)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    steered = None
    if out.fired is not None:
        steered = list(zip(out.fired.tolist(), out.spans, out.never_armed, strict=True))
    return Generated(texts, tokens, out.modes.cpu(), out.mode_probs.cpu(), wall_s, steered)


def encode(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Model inputs for `prompts`, each a user message of its own chat when the tokenizer has a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer(list(prompts), return_tensors="pt", padding=True)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )


def count_tokens(answers: torch.Tensor, eos: int | Sequence[int]) -> list[int]:
    """Generated tokens of each row, EOS included and the padding after it not."""
    ends = torch.isin(answers, torch.as_tensor(eos, device=answers.device))
    return ((ends.cumsum(dim=1) - ends.long()) == 0).sum(dim=1).tolist()
