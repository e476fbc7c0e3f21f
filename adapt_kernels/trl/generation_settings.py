"""A checkpoint's generation_config.json is for its users; a rollout is drawn from the policy itself."""

import warnings
from contextlib import contextmanager

from transformers import GenerationConfig

# Beside what TRL sets for every rollout, those that reshape the distribution or take another loop or end, and their
# values that do nothing.
_ACTING = {
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    **dict.fromkeys(("watermarking_config", "penalty_alpha", "prompt_lookup_num_tokens")),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("num_beams", "guidance_scale", "encoder_repetition_penalty"), 1),
}


def warn_of_settings(config: GenerationConfig, stacklevel: int) -> None:
    """One warning that names what a checkpoint's settings would do to a rollout, and will not."""
    given = {name: getattr(config, name, None) for name in _ACTING}
    found = {name: value for name, value in given.items() if value is not None and value != _ACTING[name]}
    if found:
        listed = ", ".join(f"{name}={str(value)[:40]}" for name, value in found.items())
        warnings.warn(
            f"the model's generation_config sets {listed}: rollouts leave that out, so that their log-probs are the"
            " policy's own. To draw with it, give it in generation_kwargs, with old_logprobs='policy'",
            stacklevel=stacklevel + 1,
        )


@contextmanager
def own_settings_only(model):
    """Inside, `generate` takes nothing from the model's generation_config, only what the call gives."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept
