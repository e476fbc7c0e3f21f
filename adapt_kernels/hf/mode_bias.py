"""ModeBias: the mode gate as a plain logits processor, for a model whose class is not to be patched."""

import torch
from transformers import LogitsProcessor

from adapt_kernels.modes import Modes
from adapt_kernels.ops.mode_sample import biased_logits, selected_modes
from adapt_kernels.program.openings import Openings
from adapt_kernels.program.request import ModeRequest, RowRequest

_NEG_INF = float("-inf")


class ModeBias(LogitsProcessor):
    """Restricts the first generated token to the modes and adds a bias there.

        processor = ak.ModeBias(modes, mode_bias=1.5, prompt_length=inputs.input_ids.shape[1])
        model.generate(**inputs, logits_processor=[processor])

    Hugging Face's own sampler draws from what this leaves: its temperature, top_k, top_p and min_p then apply to the
    modes too (top_p=0.9 drops a mode below 10 %), where `patch` skips the filters at that one token. It reports
    neither modes nor probabilities, has no `fast_prob` and no seeds, and saves no compute: those need `patch`.

    Args:
        modes: `Modes`. The ids a multi-token mode shares with the others are forced before the choice, the rest of its
            own after it.
        mode_bias: logit units: a float or one value per row (or per prompt) for the first mode, or {name: value}.
        mode: a mode name, or a list with one name or "auto" per row; not together with mode_bias.
        prompt_length: width of the `input_ids` that `generate` was given (padding included; 0 with only
            inputs_embeds). The processor keeps no state, so it needs this to know which token is the first.
        only_modes: False = only add the bias, forbid and force nothing.

    Raises ValueError or TypeError for bad arguments, and on the first call for a wrong number of rows or a
    prompt_length beyond the prompt.
    """

    def __init__(self, modes: Modes, mode_bias=None, *, prompt_length: int, mode=None, only_modes: bool = True):
        if not isinstance(modes, Modes):
            raise TypeError(f"modes must be adapt_kernels.Modes; got {type(modes).__name__}")
        if isinstance(prompt_length, bool) or not isinstance(prompt_length, int) or prompt_length < 0:
            raise ValueError(f"prompt_length must be input_ids.shape[1], an int >= 0; got {prompt_length!r}")
        if isinstance(mode, str) and mode == "balanced":
            raise ValueError("mode='balanced' needs patch: a logits processor cannot see which rows share a prompt")
        if mode is not None and not only_modes:
            raise ValueError("mode= forces the choice, which only_modes=False forbids: leave out one of them")
        self._request = ModeRequest(modes, mode=mode, mode_bias=mode_bias)
        self._modes, self._prompt_length, self._only_modes = modes, prompt_length, only_modes
        self._gate_step = len(modes.prefix)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """scores [rows, V] for the token after input_ids [rows, T]."""
        step = input_ids.shape[1] - self._prompt_length
        if step < 0:
            raise ValueError(f"prompt_length={self._prompt_length}, but the prompt has {input_ids.shape[1]} tokens")
        openings, at_gate = Openings(self._modes, scores.device), step == self._gate_step
        if step > openings.last_step or not (at_gate or self._only_modes):
            return scores
        request = self._spread(len(scores))
        modes = torch.full_like(request.forced_mode, -1)
        if step > self._gate_step:
            first = input_ids[:, self._prompt_length + self._gate_step]
            modes = selected_modes(first, self._modes.token_ids, scores.shape[1])
        tokens = openings.tokens(step, request.forced_mode.to(scores.device), modes.to(scores.device))
        return _forced(self._biased(input_ids, scores, request) if at_gate else scores, tokens)

    def _biased(self, input_ids, scores, request: RowRequest):
        at_gate = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        if not self._only_modes and self._gate_step:
            prefix = torch.tensor(self._modes.prefix, device=input_ids.device)
            at_gate = (input_ids[:, self._prompt_length :] == prefix).all(1)
        scores = scores.masked_fill(scores.isnan(), _NEG_INF)
        bias = request.banned_bias(self._modes).to(scores.device)
        return biased_logits(scores, self._modes.token_ids, at_gate, bias, self._only_modes)

    def _spread(self, rows: int):
        # Values may be per prompt; every beam or sample of a prompt then takes its value.
        given = {len(v) for v in self._values() if isinstance(v, (list, tuple)) or bool(getattr(v, "ndim", False))}
        prompts = given.pop() if len(given) == 1 else rows
        if not prompts or rows % prompts:
            prompts = rows
        return self._request.spread(prompts, rows // prompts, random=False)

    def _values(self):
        bias = self._request.mode_bias
        return [*(bias.values() if isinstance(bias, dict) else [bias]), self._request.mode]


def _forced(scores, tokens):
    """scores with every other token of a row at -inf where tokens [rows] >= 0."""
    ids = torch.arange(scores.shape[1], device=scores.device)
    chosen = ids == tokens[:, None]
    # 0, not the token's own score: that may be -inf too, and a row must keep one token.
    return torch.where((tokens < 0)[:, None], scores, torch.where(chosen, 0.0, _NEG_INF).to(scores.dtype))
