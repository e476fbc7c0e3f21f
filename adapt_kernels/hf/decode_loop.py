"""The decode loop of plan "sample_only": Hugging Face's cache, batch and stop rules, our token selection."""

import torch
from transformers.generation.utils import ALL_CACHE_NAMES

from adapt_kernels.hf.outputs import GenerateStats, ModeGenerateOutput, cache_bytes
from adapt_kernels.hf.selector import TokenSelector

_REASON = "this version has no plan with its own KV cache: Hugging Face's cache and batch are kept"


def decode(model, call, input_ids, logits_processor, stopping_criteria, config, streamer, model_kwargs):
    """Decode all rows to their end. Returns what Hugging Face's `_sample` returns, enriched with modes.

    One host sync per step (the stop check), as in Hugging Face's loop.
    """
    rows, device = len(input_ids), input_ids.device
    selector = TokenSelector(
        call.modes, call.rows, logits_processor, config, call.prompt_modes, call.request.return_logprobs, device
    )
    past = _cached_tokens(model_kwargs)
    prompt_length, record = input_ids.shape[1], _Record(config)
    ends = _RowEnds(call.modes, stopping_criteria, config, device)
    forward = _decode_forward(model, config, model_kwargs)
    outputs = model._prefill(input_ids, config, model_kwargs, is_first_iteration=True)
    prefill_tokens = rows * _prefill_width(input_ids, model_kwargs, _cached_tokens(outputs) - past)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    step = 0
    with model._optimize_model_for_decode():
        while True:
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
            logits = outputs.logits[:, -1].to(device)
            tokens, scores, logprobs = selector(step, input_ids, logits, alive)
            record.add(outputs, logits, scores, logprobs, alive)
            tokens = ends.pad(tokens, alive)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            step += 1
            alive = ends.still_alive(alive, input_ids, record.scores, selector.modes, step)
            if streamer is not None:
                streamer.put(tokens.cpu())
            # Free the logits before the next forward allocates its own.
            del outputs, logits, scores
            if not alive.any():
                break
            inputs = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=1 if model_kwargs["use_cache"] else None, **model_kwargs
            )
            outputs = forward(**inputs, return_dict=True)
    if streamer is not None:
        streamer.end()
    selector.warn_of_nan()
    cache = next((model_kwargs[name] for name in ALL_CACHE_NAMES if name in model_kwargs), None)
    steps = rows * (input_ids.shape[1] - prompt_length - 1)
    call.stats = GenerateStats("sample_only", _REASON, steps, steps, prefill_tokens, cache_bytes(cache))
    if not config.return_dict_in_generate:
        return input_ids
    return ModeGenerateOutput(
        sequences=input_ids,
        past_key_values=cache,
        modes=selector.modes,
        mode_probs=selector.mode_probs,
        stats=call.stats,
        **record.fields(),
    )


class _Record:
    """Per-step outputs the caller asked for, under Hugging Face's names."""

    def __init__(self, config):
        asked = config.return_dict_in_generate
        self.scores = () if asked and config.output_scores else None
        self._logits = () if asked and config.output_logits else None
        self._attentions = () if asked and config.output_attentions else None
        self._hidden_states = () if asked and config.output_hidden_states else None
        self._logprobs = []

    def add(self, outputs, logits, scores, logprobs, alive) -> None:
        if self.scores is not None:
            self.scores += (scores,)
        if self._logits is not None:
            self._logits += (logits.to(copy=True, dtype=torch.float32),)
        if self._attentions is not None:
            self._attentions += (outputs.attentions,)
        if self._hidden_states is not None:
            self._hidden_states += (outputs.hidden_states,)
        if logprobs is not None:
            self._logprobs.append(torch.where(alive, logprobs, 0.0))

    def fields(self) -> dict:
        return {
            "scores": self.scores,
            "logits": self._logits,
            "attentions": self._attentions,
            "hidden_states": self._hidden_states,
            "logprobs": torch.stack(self._logprobs, 1) if self._logprobs else None,
        }


class _RowEnds:
    """When a row ends (stopping criteria, its mode's max_new_tokens), and what it shows afterwards."""

    def __init__(self, modes, stopping_criteria, config, device):
        self._criteria = stopping_criteria
        # Hugging Face pads ended rows only when a criterion has an EOS id; without one they keep their tokens.
        self._pads_all = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        self._pad = config._pad_token_tensor
        limits = [modes[name].max_new_tokens for name in modes]
        self._limits = None
        if any(limits):
            if self._pad is None:
                raise ValueError("Mode.max_new_tokens needs a pad token for rows that end early: pass pad_token_id=...")
            # Index -1 (no mode) reads the last entry: no limit.
            unlimited = torch.iinfo(torch.int64).max
            self._limits = torch.tensor([limit or unlimited for limit in limits] + [unlimited], device=device)
        self._capped = torch.zeros((), dtype=torch.bool, device=device)

    def pad(self, tokens, alive):
        if self._pads_all:
            return torch.where(alive, tokens, self._pad.to(tokens.device))
        if self._limits is not None:
            return torch.where(alive | ~self._capped, tokens, self._pad.to(tokens.device))
        return tokens

    def still_alive(self, alive, input_ids, scores, modes, new_tokens: int):
        alive = alive & ~self._criteria(input_ids, scores)
        if self._limits is not None:
            over = new_tokens >= self._limits[modes.long()]
            self._capped = self._capped | over
            alive = alive & ~over
        return alive


def _cached_tokens(holder) -> int:
    cache = next((holder[name] for name in ALL_CACHE_NAMES if holder.get(name) is not None), None)
    try:
        return int(cache.get_seq_length()) if cache is not None else 0
    except ValueError:  # only linear-attention layers: they keep no length
        return 0


def _prefill_width(input_ids, model_kwargs, cached: int) -> int:
    if cached > 0:
        return cached
    # No cache, or one without a length: the prompt was computed as it came.
    embeds = model_kwargs.get("inputs_embeds")
    return input_ids.shape[1] if embeds is None else embeds.shape[1]


def _decode_forward(model, config, model_kwargs):
    if model._valid_auto_compile_criteria(model_kwargs, config):
        return model.get_compiled_call(config.compile_config)
    return model.__call__
