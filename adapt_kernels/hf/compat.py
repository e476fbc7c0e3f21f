"""Hugging Face's names that are not its public interface: what we need of them, checked when a model is patched."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import transformers
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    masking_utils,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation import logits_process, stopping_criteria, utils

# The cache among arguments, model inputs and output fields: "past_key_values" up to 5.23, "cache" from 5.24 on.
CACHE_NAMES = tuple(getattr(utils, "ALL_CACHE_NAMES", ("cache",)))
CACHE = CACHE_NAMES[0]

# sha256 of the source of GenerationMixin._sample in the releases that our loop was compared with.
_COMPARED_LOOPS = {"9f5d2e3906df6579": "5.17 to 5.23", "a6e4d9f96a55d11b": "5.24"}
_REMEDY = (
    "adapt_kernels was compared with transformers 5.17 to 5.24: install one of these"
    " (pip install 'transformers>=5.17,<5.25') or a newer adapt_kernels"
)
_GENERATION = (
    *("generate", "_sample", "_prefill", "prepare_inputs_for_generation", "_prepare_generated_length"),
    *("_prepare_generation_config", "_prepare_special_tokens", "_prepare_cache_for_generation"),
    *("_update_model_kwargs_for_generation", "_valid_auto_compile_criteria", "_optimize_model_for_decode"),
    "_prepare_position_ids_for_generation",
)
_LAYER = (
    *("keys", "values", "device", "is_initialized", "lazy_initialization", "update", "reorder_cache", "crop"),
    "get_seq_length",
)


def check_names() -> None:
    """Raises RuntimeError that says which name the installed transformers lacks. Each call looks anew."""
    try:
        for owner, has, needs in _names():
            missing = [name for name in needs if name not in has]
            if missing:
                raise RuntimeError(f"transformers {transformers.__version__} has no {owner}.{missing[0]}; {_REMEDY}")
    except (AttributeError, TypeError) as error:
        raise RuntimeError(f"transformers {transformers.__version__}: {error}; {_REMEDY}") from error


def _names():
    """(owner, the names it has, the names we need) of everything; fields are looked for on instances."""
    yield "generation.utils", vars(utils), ("ALL_CACHE_NAMES", "GenerateDecoderOnlyOutput")
    yield "masking_utils", vars(masking_utils), ("causal_mask_function",)
    yield "GenerationMixin", dir(GenerationMixin), _GENERATION
    model = ("_is_stateful", "_supports_attention_backend", "_tp_size", "get_compiled_call")
    yield "PreTrainedModel", dir(PreTrainedModel), model
    yield "PreTrainedConfig", dir(PreTrainedConfig), ("_attn_implementation", "get_text_config")
    yield "GenerationConfig", dir(GenerationConfig()), ("cache_implementation", "is_assistant", "get_generation_mode")
    yield "DynamicCache", dir(DynamicCache()), ("layers", "offloading", "get_seq_length")
    layer = DynamicLayer()
    layer.lazy_initialization(*torch.zeros(2, 1, 1, 1, 1, device="cpu"))
    yield "DynamicLayer", dir(layer), _LAYER
    # What these methods set on the objects of a call.
    yield "GenerationConfig", _mentioned(GenerationMixin, "_prepare_special_tokens"), ("_pad_token_tensor",)
    yield "Cache", _mentioned(GenerationMixin, "_prepare_cache_for_generation"), ("_is_user_defined",)
    # Arguments we pass by name.
    for method, argument in (
        ("_prefill", "is_first_iteration"),
        ("_prepare_generated_length", "input_ids_length"),
        ("prepare_inputs_for_generation", "next_sequence_length"),
        ("_update_model_kwargs_for_generation", "is_encoder_decoder"),
    ):
        yield f"GenerationMixin.{method}", inspect.signature(getattr(GenerationMixin, method)).parameters, (argument,)
    yield from _processor_names()


def _processor_names():
    cut = ("filter_value", "min_tokens_to_keep")
    yield "TemperatureLogitsWarper", dir(logits_process.TemperatureLogitsWarper(0.5)), ("temperature",)
    yield "TopKLogitsWarper", dir(logits_process.TopKLogitsWarper(2)), ("top_k", "filter_value")
    yield "TopPLogitsWarper", dir(logits_process.TopPLogitsWarper(0.5)), ("top_p", *cut)
    yield "MinPLogitsWarper", dir(logits_process.MinPLogitsWarper(0.5)), ("min_p", *cut)
    penalty = logits_process.RepetitionPenaltyLogitsProcessor(1.5)
    yield "RepetitionPenaltyLogitsProcessor", dir(penalty), ("prompt_ignore_length",)
    yield "EosTokenCriteria", dir(stopping_criteria.EosTokenCriteria(0)), ("eos_token_id",)
    yield "StoppingCriteriaList", dir(stopping_criteria.StoppingCriteriaList), ("max_length",)


def _mentioned(owner, method: str) -> tuple[str, ...]:
    return inspect.unwrap(getattr(owner, method)).__code__.co_names


def existing(module, *names: str) -> tuple[type, ...]:
    """Those of a module's classes that the installed release has."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


def loop_is_known(loop) -> bool:
    """Whether ours was compared with this `GenerationMixin._sample`, by its source."""
    try:
        # Of the code itself: a wrapper passes for what it wraps.
        source = inspect.getsource(loop.__code__)
    except (AttributeError, OSError):
        return False
    return hashlib.sha256(source.encode()).hexdigest()[:16] in _COMPARED_LOOPS


@dataclass(frozen=True)
class CheckedLoop:
    """`GenerationMixin._sample` when a model was patched. difference: why ours cannot stand in for it, or None;
    warning: what to tell the user, or None."""

    function: Callable
    difference: str | None = None
    warning: str | None = None

    @property
    def reason(self) -> str | None:
        """Why ours cannot stand in for the loop that is installed now, or None."""
        if GenerationMixin._sample is not self.function:
            return (
                "GenerationMixin._sample was replaced after patch: unpatch and patch again, to have the new one checked"
            )
        return self.difference


def unknown_loop() -> str:
    """What users are told about a loop that is not known; the outcome of the self-check follows."""
    return (
        f"transformers {transformers.__version__} has a sampling loop that adapt_kernels was not compared with"
        f" (known: {', '.join(_COMPARED_LOOPS.values())})"
    )


def said(state) -> tuple[list[int], list[int]]:
    """(prompt, generated) of a request of continuous batching: one that was reset holds both in its first tokens."""
    begin = state._true_initial_tokens or len(state.initial_tokens)
    return state.initial_tokens[:begin], state.initial_tokens[begin:] + state.generated_tokens


def is_over(state) -> bool:
    """Whether such a request is finished, or has failed."""
    return state.status.name in ("FINISHED", "FAILED")


class _Marker(LogitsProcessor):
    """Stands for `steering` among the model's processors, until continuous batching puts its own kind in its place."""

    supports_continuous_batching = True

    def __init__(self, steering):
        self.steering = steering

    def __call__(self, input_ids, scores):
        raise RuntimeError("continuous batching applied this processor without its requests")


def _per_request(processors, key: str):
    class Steered(processors.ContinuousBatchingLogitsProcessor):
        supported_kwargs: ClassVar[dict] = {key: object}
        ignored_kwargs = ()

        def __init__(self, marker: _Marker):
            self.steering = marker.steering

        def fill_defaults(self, int32_tensor):
            int32_tensor.zero_()

        def prepare_tensor_args(self, requests_with_new_token):
            self.steering.begin([request.state for request in requests_with_new_token])
            return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

        def __call__(self, scores, tensor_arg):
            return self.steering.write(scores)

    return Steered


def continuous_manager(model, steering, key: str, generation_config, fields: dict):
    """A `ContinuousBatchingManager` whose first processor is `steering`; requests carry theirs under the keyword `key`.

    Raises RuntimeError where the model has a manager already, or transformers lacks what this needs.
    """
    try:
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching import cb_logits_processors as processors

        kinds, listed = processors.CLASSIC_TO_CB_PROCESSORS_MAP, model._get_logits_processor
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"transformers {transformers.__version__}: {error}; {_REMEDY}") from error
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        raise RuntimeError("the model has a continuous batching manager already: call its destroy, or stop, first")
    # Only classes of this map get the requests of a step.
    kinds.setdefault(_Marker, _per_request(processors, key))
    model._get_logits_processor = lambda config: LogitsProcessorList([_Marker(steering), *listed(config)])
    try:
        manager = model.init_continuous_batching(
            generation_config=generation_config, continuous_batching_config=ContinuousBatchingConfig(**fields)
        )
    finally:
        del model._get_logits_processor
    return manager
