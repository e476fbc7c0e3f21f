"""Which plan a `generate` call can take, decided before anything is computed."""

import hashlib
import inspect

from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerationMixin

# Names of Hugging Face's loop that ours is built from.
_NEEDED = (
    "_prefill",
    "_sample",
    "_prepare_generation_config",
    "_update_model_kwargs_for_generation",
    "_optimize_model_for_decode",
    "_valid_auto_compile_criteria",
    "prepare_inputs_for_generation",
)
# sha256 of the source of GenerationMixin._sample in the transformers releases this loop was compared with.
_KNOWN_LOOPS = {"9f5d2e3906df6579": "5.17.0 to 5.23.0"}


def original_reason(model, original_class, config, arguments: dict) -> str | None:
    """Why this call must stay Hugging Face's own ("plan original"), or None.

    config: the merged GenerationConfig; arguments: `generate`'s arguments by name.
    """
    if original_class.generate is not GenerationMixin.generate:
        return f"{original_class.__name__} has its own generate"
    if original_class._sample is not GenerationMixin._sample:
        return f"{original_class.__name__} has its own sampling loop"
    if arguments.get("custom_generate") is not None:
        return "custom_generate replaces the decoding loop"
    if config.cache_implementation == "paged":
        return "cache_implementation='paged' is Hugging Face's continuous batching"
    mode = config.get_generation_mode(arguments.get("assistant_model"))
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        return f"{mode.value.replace('_', ' ')} has its own decoding loop"
    if model.config.is_encoder_decoder:
        return "encoder-decoder model"
    if config.is_assistant:
        return "this model is drafting for another one (assisted decoding)"
    if arguments.get("synced_gpus"):
        return "synced_gpus: all ranks must run the same number of forwards"
    if (getattr(model, "_tp_size", None) or 1) > 1:
        return "tensor parallel: all ranks would need one seed"
    if model.device.type == "mps":
        return "device mps has no float64"
    return None


def unknown_loop_warning() -> str | None:
    """A warning when transformers' sampling loop is not one we know. Raises RuntimeError when parts are missing."""
    from transformers import __version__

    missing = [name for name in _NEEDED if not hasattr(GenerationMixin, name)]
    if missing:
        raise RuntimeError(
            f"transformers {__version__} has no GenerationMixin.{missing[0]}: adapt_kernels needs transformers >= 5.17"
        )
    digest = hashlib.sha256(inspect.getsource(GenerationMixin._sample).encode()).hexdigest()[:16]
    if digest in _KNOWN_LOOPS:
        return None
    return (
        f"transformers {__version__} has a sampling loop that adapt_kernels was not compared with"
        f" (known: {', '.join(_KNOWN_LOOPS.values())}); check that greedy tokens equal the unpatched model's"
    )
