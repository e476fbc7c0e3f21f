"""What model inputs and outputs hold in their cache, whatever the release calls it."""

from transformers.cache_utils import Cache

from adapt_kernels.hf.compat import CACHE_NAMES


def training_state(model) -> tuple[bool, bool]:
    """What a model may leave its cache unused for at one time and not at another."""
    checkpoints = ("is_activation_checkpointing", "is_gradient_checkpointing")  # from transformers 5.24 on; before
    return model.training, next(getattr(model, name) for name in checkpoints if hasattr(model, name))


def cache_of(holder):
    """The cache in model inputs or outputs, or None."""
    return next((holder[name] for name in CACHE_NAMES if holder.get(name) is not None), None)


def cached_tokens(holder) -> int:
    """Positions in the cache of model inputs or outputs; 0 for one that keeps no length."""
    cache = cache_of(holder)
    if not isinstance(cache, Cache):  # tuples and lists of models with states of their own
        return 0
    try:
        return int(cache.get_seq_length() or 0)
    except ValueError:  # only linear-attention layers
        return 0


def prefill_width(input_ids, model_kwargs, cached: int) -> int:
    """Positions that a prefill has computed, of which the cache holds `cached` more than before."""
    if cached > 0:
        return cached
    # No cache, or one without a length: the prompt was computed as it came.
    embeds = model_kwargs.get("inputs_embeds")
    return input_ids.shape[1] if embeds is None else embeds.shape[1]


def given_width(input_ids, model_kwargs) -> int:
    """Positions of a prompt, as the attention mask has them where there is one."""
    mask = model_kwargs.get("attention_mask")
    return prefill_width(input_ids, model_kwargs, 0) if mask is None else mask.shape[1]
