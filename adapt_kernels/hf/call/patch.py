"""patch, unpatch, patched: a model instance gets a subclass of its own class, and gets its class back."""

import threading
import warnings
from collections.abc import Mapping
from contextlib import contextmanager

from transformers.generation.utils import GenerationMixin

from adapt_kernels.hf.call.class_swap import is_patched_class, patched_class
from adapt_kernels.hf.call.generate import ModeGenerate
from adapt_kernels.hf.call.loop_check import check_loop
from adapt_kernels.hf.call.state import STATES, PatchState
from adapt_kernels.hf.compat import check_names
from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.modes import TOKEN_FIELDS, Modes
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span

_LOCK = threading.Lock()


def patch(model, modes: Modes, spans: Mapping[str, Span] | None = None):
    """Teach one model's `generate` the mode arguments; returns the model.

    The instance gets a subclass of its own class (same name); its `__dict__`, weights, config and every other model
    stay as they are. A copy or pickle of a patched model is unpatched. A PEFT model is patched at its base model.
    Patching again with equal modes does nothing.

    spans: where the thought opens and closes, {"think": Span(open, close)} as ids, for `generate(thinking_budget=...)`,
    where neither a closing of the modes nor their preset tells it, or to overrule these.

    Where ours was not compared with transformers' sampling loop, a warning says what a self-check on a tiny model
    found; if the two differ, every call takes plan "original".

    Raises TypeError for a model without Hugging Face's `generate` or modes that are not `Modes`; ValueError for other
    modes than before, or ids outside the model's vocabulary; RuntimeError where transformers lacks a name we need.
    """
    return _patch(model, modes, spans, stacklevel=3)


def _patch(model, modes: Modes, spans, stacklevel: int):
    model_itself = _generating_model(model)
    if not isinstance(modes, Modes):
        raise TypeError(f"modes must be adapt_kernels.Modes, such as Modes(fast=5, slow=6); got {modes!r}")
    spans = _checked_spans(model_itself, {} if spans is None else spans)
    with _LOCK:
        state = STATES.get(model_itself)
        if state is not None and isinstance(model_itself, ModeGenerate):
            for ours, theirs in ((state.modes, modes), (state.spans, spans)):
                if ours != theirs:
                    raise ValueError(f"this model is patched with {ours}; call unpatch(model) before patching {theirs}")
            return model
        _check_fits(model_itself, modes)
        check_names()
        loop = check_loop()
        if loop.warning:
            warnings.warn(loop.warning, stacklevel=stacklevel)
        made = PatchState(modes, loop, spans)
        _ = made.closings  # which may be refused
        STATES[model_itself] = made
        model_itself.__class__ = patched_class(type(model_itself))
    return model


def unpatch(model) -> None:
    """Give the model its own class back; does nothing when it is not patched.

    Raises RuntimeError inside a running `generate`, or when someone else changed the model's class after `patch`.
    """
    model_itself = _generating_model(model)
    with _LOCK:
        state = STATES.get(model_itself)
        if state is None:
            return
        if state.running:
            raise RuntimeError("unpatch was called while generate is running on this model; call it afterwards")
        current = type(model_itself)
        if not is_patched_class(current):
            raise RuntimeError(
                f"the model's class was changed to {current.__qualname__} after patch; undo that change first"
            )
        model_itself.__class__ = current.original_class
        del STATES[model_itself]


@contextmanager
def patched(model, modes: Modes, spans: Mapping[str, Span] | None = None):
    """`with patched(model, modes):` patches for the block; a model that was patched before stays patched."""
    was_patched = _generating_model(model) in STATES
    _patch(model, modes, spans, stacklevel=4)
    try:
        yield model
    finally:
        if not was_patched:
            unpatch(model)


def last_stats(model) -> GenerateStats | None:
    """Stats of the latest `generate` of a patched model, None before the first. Raises ValueError if not patched."""
    return _state(model).last_stats


def modes_of(model) -> Modes:
    """The modes a model is patched with. Raises ValueError if it is not patched."""
    return _state(model).modes


def _state(model) -> PatchState:
    state = STATES.get(_generating_model(model))
    if state is None:
        raise ValueError("this model is not patched: call adapt_kernels.patch(model, modes) first")
    return state


def _generating_model(model):
    # PEFT's generate calls the base model's.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, GenerationMixin):
        raise TypeError(
            f"model must be a Hugging Face model with generate(); got {type(model).__name__}{_wrapped(model)}"
        )
    return inner


def _wrapped(model) -> str:
    """Where the model is inside what torch.compile, DataParallel, DDP, FSDP1, a pipeline or a trainer made of it."""
    path, inner = "model", model
    for _ in range(4):
        name = next((n for n in ("_orig_mod", "module", "model") if getattr(inner, n, None) is not None), None)
        if name is None:
            break
        path, inner = f"{path}.{name}", getattr(inner, name)
        if isinstance(inner, GenerationMixin) or hasattr(inner, "get_base_model"):
            return f", which only wraps a {type(inner).__name__}: pass that one, {path}, whose generate is what runs"
    return ""


def _check_fits(model, modes: Modes) -> None:
    vocab_size = model.config.get_text_config().vocab_size
    for name in modes:
        ids = [i for field in TOKEN_FIELDS for i in getattr(modes[name], field) or ()]
        outside = [i for i in ids if i >= vocab_size]
        if outside:
            raise ValueError(
                f"mode {name!r}: token id {outside[0]} is outside the model's vocabulary of {vocab_size};"
                " after tokenizer.add_special_tokens call model.resize_token_embeddings(len(tokenizer))"
            )


def _checked_spans(model, spans) -> dict[str, Span]:
    if not isinstance(spans, Mapping) or not all(isinstance(each, Span) for each in spans.values()):
        raise TypeError(f"spans must be {{name: adapt_kernels.Span(open, close)}}; got {spans!r}")
    if spans:
        try:
            Program.from_dict({"spans": spans, "rules": []}).check_vocabulary(model.config.get_text_config().vocab_size)
        except ValueError as error:
            # There is no tokenizer here.
            raise ValueError(f"spans of patch: {error}".replace("pass tokenizer=, or write ids", "write ids")) from None
    return dict(spans)
