"""What `kv_keep` of a call asks for, checked before anything is computed."""

from typing import Any

import torch

from adapt_kernels.hf.call.programs import vocab_size
from adapt_kernels.program.keep import KeepKV
from adapt_kernels.program.program import Program
from adapt_kernels.program.steer_request import delimiters, reply_tails, thought_spans
from adapt_kernels.program.thoughts import ThoughtFlags

KEEP = "kv_keep"


def draws(settings) -> bool:
    """Whether evictions draw from the rows' seeds."""
    return getattr(settings, "score", None) == "random"


def checked_thoughts(call, prompt, ids, samples: int) -> ThoughtFlags | None:
    """Of a call with kv_keep: which rows think after their prompts ids [batch, T]; None where no think span is known.

    prompt: what carries the batch, or None. Raises TypeError or ValueError for settings, or a prompt, that cannot be
    served. Reads the prompts.
    """
    if call.keep is None:
        return None
    mask = call.arguments.get("attention_mask")
    _check(call.model, call.keep, prompt, mask)
    state = call.state
    thoughts = thought_spans(state.modes, state.spans)
    if not thoughts:
        return None
    spans = {name: thought.span for name, thought in thoughts.items()}
    program = Program.from_dict({"spans": spans, "rules": []})
    told = state.modes.prompt_tokens
    turns = {*call.eos_ids, *(() if told is None else told.turns)}
    tails = reply_tails(ids, mask, turns, delimiters([program]))
    return ThoughtFlags(program, [tail for tail in tails for _ in range(samples)], vocab_size(call.model), ids.device)


def _check(model, settings, prompt, mask) -> None:
    if not isinstance(settings, KeepKV):
        raise TypeError(f"kv_keep must be an adapt_kernels.KeepKV; got {settings!r}")
    scorer: Any = settings.score
    if settings.by_head:
        scorer.check_model(model)
    if prompt is not None:
        length = prompt.shape[1]
        fits = torch.is_tensor(mask) and mask.ndim == 2 and mask.shape[1] == length
        settings.check_prompt(length, int((mask != 0).sum(1).max()) if fits else length)
