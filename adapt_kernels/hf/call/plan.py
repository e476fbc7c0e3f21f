"""Which plan a `generate` call can take, decided before anything is computed."""

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import cache_utils
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerationMixin

from adapt_kernels.hf.call.programs import has_probes
from adapt_kernels.hf.compat import CACHE, CACHE_NAMES, existing
from adapt_kernels.hf.kv.batch import NO_CACHE
from adapt_kernels.hf.kv.cached import cache_of, training_state
from adapt_kernels.hf.kv.prompts import ROW_INPUTS
from adapt_kernels.hf.loop.processors import ROWWISE_PROCESSORS
from adapt_kernels.hf.model_hooks import ModelHooks
from adapt_kernels.hf.outputs import asked_outputs
from adapt_kernels.hf.plan import Plan
from adapt_kernels.hf.row_hooks import row_hook_reason


def own_loop_reason(original_class, arguments: dict) -> str | None:
    """Why this call has a loop of its own, which may begin before a GenerationConfig is merged; or None.

    arguments: `generate`'s, by name.
    """
    if original_class.generate is not GenerationMixin.generate:
        return f"{original_class.__name__} has its own generate"
    if original_class._sample is not GenerationMixin._sample:
        return f"{original_class.__name__} has its own sampling loop"
    if arguments.get("custom_generate") is not None:
        return "custom_generate replaces the decoding loop"
    return None


def original_reason(model, config, arguments: dict) -> str | None:
    """Why a call without a loop of its own must stay Hugging Face's ("plan original"), or None.

    config: the merged GenerationConfig; arguments: `generate`'s, by name.
    """
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


# Their `reorder_cache` selects rows in every state they hold.
_REORDERABLE_LAYERS = existing(
    cache_utils,
    *("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer", "LinearAttentionLayer"),
    *("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer"),
)


def loop_plan(model, call, config, processors, rows: int, model_kwargs) -> Plan:
    """The plan with which the loop of a call begins; what its prefill shows may change it."""
    plan, asks = call.plan, call.paths is not None and call.paths.own_function
    if asks or has_probes(call.programs):
        plan = plan.without_appending(no_append_reason(model, config, model_kwargs) or "")
    reason = whole_batch_reason(model, call, config, processors, rows, model_kwargs)
    return plan if reason is None else plan.keeping_the_batch(reason)


def whole_batch_reason(model, call, config, processors, rows: int, model_kwargs) -> str | None:
    """Why this call must keep Hugging Face's cache and batch ("sample_only"), or None: it can take plan "full"."""
    if call.request.rng == "hf":
        return "rng='hf' draws for the whole batch in Hugging Face's order"
    if model.training and _has_dropout(model):
        return "the model is in training mode: dropout depends on the whole batch"
    if call.state.no_cache is not None and call.state.no_cache == training_state(model):
        return NO_CACHE
    hooks = ModelHooks(model)
    if hooks.handles & call.state.changing_hooks:
        return hooks.reason()
    return (
        _output_reason(config, call.keep)
        or row_hook_reason(model)
        or _virtual_token_reason(model)
        or _processor_reason(processors)
        or _cache_reason(model, config, model_kwargs)
        or _input_reason(rows, model_kwargs)
    )


def no_append_reason(model, config, model_kwargs) -> str | None:
    """Why positions cannot be appended to the rows of this call and taken back, or None."""
    if model.training and _has_dropout(model):
        return "the model is in training mode: dropout would draw for them"
    return _virtual_token_reason(model) or _cache_reason(model, config, model_kwargs)


def _has_dropout(model) -> bool:
    # Modeling files keep rates in modules, and pass those of the config to functions.
    settings = model.config.get_text_config().to_dict()
    rates = [v for name, v in settings.items() if "drop" in name and isinstance(v, float)]
    return any(rates) or any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p for m in model.modules())


def _virtual_token_reason(model) -> str | None:
    if "prepare_inputs_for_generation" in vars(model):
        return "prepare_inputs_for_generation was replaced on the model: it may put virtual tokens before the prompt"
    return None


def _output_reason(config, keep) -> str | None:
    # Rows under kv_keep stay for their scores and logits, which have no other plan.
    stay = ("output_scores", "output_logits") if keep is not None else ()
    asked = [name for name in asked_outputs(config) if name not in stay]
    return f"{asked[0]} shows what finished rows compute" if asked else None


def _processor_reason(processors) -> str | None:
    other = [type(processor).__name__ for processor in processors if type(processor) not in ROWWISE_PROCESSORS]
    return f"{other[0]} may depend on the place of a row in the batch" if other else None


def _cache_reason(model, config, model_kwargs) -> str | None:
    kv_cache = cache_of(model_kwargs)
    if not model_kwargs.get("use_cache") or kv_cache is None:
        return "there is no cache to branch"
    if getattr(kv_cache, "_is_user_defined", False):
        return f"{CACHE} was given: it belongs to the caller"
    if type(kv_cache) is not cache_utils.DynamicCache or kv_cache.offloading:
        return f"{type(kv_cache).__name__}, offloaded, quantized or static, keeps its shape"
    other = [type(layer).__name__ for layer in kv_cache.layers if type(layer) not in _REORDERABLE_LAYERS]
    if other:
        return f"cache layers of type {other[0]} are not known to reorder"
    model_class: Any = type(model)
    if model._is_stateful and not _keeps_states_in_cache(model_class):
        return f"{model.config.model_type} keeps its state on its modules, out of reach of the cache"
    if model._valid_auto_compile_criteria(model_kwargs, config):
        return "the compiled forward needs one batch size"
    return None


def _input_reason(rows: int, model_kwargs) -> str | None:
    for name, value in model_kwargs.items():
        if name in ROW_INPUTS and value is not None:
            known = value.ndim == (3 if name == "inputs_embeds" else 2) and len(value) == rows
        else:
            known = name in CACHE_NAMES or not isinstance(value, (torch.Tensor, list, tuple, Mapping))
        if not known:
            return f"model input {name!r} may hold rows in a layout of its own"
    return None


@cache
def _keeps_states_in_cache(model_class: type) -> bool:
    for base in model_class.__mro__:
        module = sys.modules.get(base.__module__)
        if module is not None and base.__module__.rpartition(".")[2].startswith("modeling_"):
            source = inspect.getsource(module)
            return "update_recurrent_state(" in source or "update_conv_state(" in source
    return False
