"""The attention function through which a model reads `SharedPromptLayer`s, and the proof that it reads them rightly.

For a decode step the model's `config._attn_implementation` is a name that equals the plain one wherever the model
compares it, and is found as ours in transformers' registries. Keys without our mark go to the plain implementation, so
other layers, other models and other threads see no difference meanwhile.
"""

import inspect
import sys
import threading
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.cache_utils import DynamicLayer

from adapt_kernels import dispatch
from adapt_kernels.hf.kv.shared_prompts import SharedPromptLayer

_PREFIX = "adapt_segments_or_"
_PLAIN = ("sdpa", "eager")
_LOCK = threading.Lock()
_USERS: dict[int, int] = {}  # calls under way, by the id of the config whose name is switched
# What segments honour; being causal means nothing at one new position, nor does dropout at a rate of 0.
_HONOURED = {"scaling", "sliding_window", "softcap", "s_aux", "is_causal"}
UNREAD = "does not read the keys that its cache returns (it computes others from them)"


class _Alias(str):
    """A plain name for whoever compares it; hashed as the name of ours, which is what a registry looks up."""

    __slots__ = ()

    def __eq__(self, other):
        return str.__eq__(self, other) or _PREFIX + str(self) == other

    def __hash__(self):
        return hash(_PREFIX + str(self))


def shared_layout_reason(model, attention_mask) -> str | None:
    """Why a model cannot read shared prompts, as far as that can be told without running it; or None."""
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not take attention functions"
    implementation = _text_config(model)._attn_implementation
    if implementation not in _PLAIN:
        return f"attn_implementation is {implementation!r}; it must be 'sdpa' or 'eager'"
    if attention_mask is not None and bool((attention_mask.diff(dim=1) < 0).any()):
        return "attention_mask must be left padding: zeros, then ones"
    return None


class ReadingProof:
    """One forward of a model in both layouts: what its attention passes on, and what comes out.

    The model's own attention reads every row's keys and values and decides what the forward gives; `segment_attention`
    reads the segments beside it. fault: the first difference, None so far. Host syncs: one per layer.
    """

    def __init__(self):
        self.fault: str | None = None
        self._issued: set[int] = set()
        self._read: set[int] = set()

    def issue(self, layer: SharedPromptLayer) -> None:
        """The layer has handed its keys and values out."""
        self._issued.add(id(layer))

    @property
    def begun(self) -> bool:
        return bool(self._issued)

    def compare(self, layer: SharedPromptLayer, query, value, mask, settings: dict, plain):
        """plain(): the output of the model's own attention; it is returned."""
        expected = plain()
        self._read.add(id(layer))
        fault = _reading_fault(layer, query, value, mask, settings, plain)
        if fault is None:
            found, wanted = _segments_output(layer, query, settings).float(), expected[0].float()
            tolerance = max(1e-4, 8 * torch.finfo(query.dtype).eps) * float(wanted.abs().max())
            if found.shape != wanted.shape or not bool(((found - wanted).abs() <= tolerance).all()):
                fault = "computes something else from its keys and values than scaled dot products"
        self.fault = self.fault or fault
        return expected

    def finish(self) -> str | None:
        """After the forward: the fault, or None where every layer's keys were read, and rightly."""
        return self.fault or (None if self._read == self._issued else UNREAD)


class KeyMarks(list):
    """One per cache layer and update of a prefill: whether attention read keys and values as they were returned."""

    def all_read(self) -> bool:
        return all(mark.read for mark in self)


class _Mark:
    read, shown_values = False, None


@contextmanager
def marking_keys(model, cache):
    """Run the prefill inside; then the yielded `KeyMarks` tell whether the model may read `SharedPromptLayer`s."""
    marks, plain = KeyMarks(), [layer for layer in cache.layers if type(layer) is DynamicLayer]
    for layer in plain:
        layer.update = partial(_marked_update, layer.update, marks)
    try:
        with reading_segments(model):
            yield marks
    finally:
        for layer in plain:
            del layer.update


def _marked_update(update, marks: list, *args, **kwargs):
    keys, values = update(*args, **kwargs)
    # A view: the layer keeps the tensor itself.
    keys = keys.view_as(keys)
    keys.segments_of = mark = _Mark()
    mark.shown_values = values
    marks.append(mark)
    return keys, values


def _text_config(model):
    # Setting the name on a composite config would change its other parts too.
    return model.config.get_text_config(decoder=True)


@contextmanager
def reading_segments(model):
    """The model's attention reads `SharedPromptLayer`s inside this block."""
    config = _text_config(model)
    _register()
    with _LOCK:
        _USERS[id(config)] = _USERS.get(id(config), 0) + 1
        if _USERS[id(config)] == 1:
            config._attn_implementation = _Alias(config._attn_implementation)
    try:
        yield
    finally:
        with _LOCK:
            _USERS[id(config)] -= 1
            if _USERS[id(config)] == 0:
                del _USERS[id(config)]
                config._attn_implementation = str(config._attn_implementation)


def _register() -> None:
    # Both registries: without a mask function of the same name padding would be ignored.
    for plain in _PLAIN:
        AttentionInterface.register(_PREFIX + plain, _FUNCTIONS[plain])
        AttentionMaskInterface.register(_PREFIX + plain, partial(_mask, AttentionMaskInterface()[plain]))


def _mask(plain, *args, **kwargs):
    device = kwargs.get("device")
    if kwargs.get("q_length") == 1 and device is not None and dispatch.host_waits(device):
        # Whether there is padding is in the device's memory, and our segments need no mask.
        kwargs["allow_is_causal_skip"] = False
    mask = plain(*args, **kwargs)
    if torch.is_tensor(mask) and kwargs.get("mask_function") is masking_utils.causal_mask_function:
        _root(mask).causal_mask = _layout(mask)
    return mask


def _root(tensor) -> Any:
    return tensor if tensor._base is None else tensor._base


def _layout(tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _segments_or_sdpa(module, query, key, value, attention_mask, **settings):
    # Some releases of transformers leave a softcap out here, the others refuse it; none has sinks.
    known = {**settings, "softcap": None, "s_aux": None}
    plain = partial(AttentionInterface()["sdpa"], module, query, key, value, attention_mask, **settings)
    return _read(query, key, value, attention_mask, known, plain)


def _segments_or_eager(module, query, key, value, attention_mask, **settings):
    attention_class: Any = type(module)
    plain = partial(_eager_function(attention_class), module, query, key, value, attention_mask, **settings)
    return _read(query, key, value, attention_mask, settings, plain)


_FUNCTIONS = {"sdpa": _segments_or_sdpa, "eager": _segments_or_eager}


@cache
def _eager_function(attention_class: type):
    # Every modeling file has one of its own.
    for base in attention_class.__mro__:
        if hasattr(sys.modules.get(base.__module__), "eager_attention_forward"):
            return sys.modules[base.__module__].eager_attention_forward
    raise RuntimeError(
        f"{attention_class.__name__} has no eager_attention_forward in its modeling file: call generate with"
        " kv_layout='rows'"
    )


def _read(query, key, value, mask, settings: dict, plain):
    """(output [slots, q, Hq, Dv], weights or None) from segments where the keys are ours, else plain()."""
    layer, watch = getattr(key, "segments_of", None), getattr(key, "watched_by", None)
    if watch is not None:
        watch(plain.args[0], query, settings)
    if isinstance(layer, _Mark):
        layer.read = value is layer.shown_values and _unknown_setting(settings, plain) is None
        return plain()
    if layer is None:
        return plain()
    if layer.proof is not None:
        return layer.proof.compare(layer, query, value, mask, settings, plain)
    fault = _reading_fault(layer, query, value, mask, settings, plain)
    if fault is not None:
        raise RuntimeError(f"this model's attention {fault}: call generate with kv_layout='rows'")
    return _segments_output(layer, query, settings), None


def _segments_output(layer: SharedPromptLayer, query, settings: dict) -> torch.Tensor:
    """[slots, 1, Hq, Dv]"""
    known = {
        "softcap": settings.get("softcap"),
        "sinks": settings.get("s_aux"),
        "window": settings.get("sliding_window"),
    }
    return layer.attend(query[:, :, 0], scale=settings.get("scaling"), **known)[:, None]


def _reading_fault(layer: SharedPromptLayer, query, value, mask, settings: dict, plain) -> str | None:
    """What of a call of attention segments would not honour; or None. No host sync."""
    if query.shape[2] != 1:
        return f"asks for {query.shape[2]} positions at once"
    if value is not layer.shown_values:
        return "computes with the values that its cache returns"
    if (unknown := _unknown_setting(settings, plain)) is not None:
        return f"takes {unknown}"
    if mask is None:
        return "leaves the padding in" if layer.rows.padded else None
    # A view of all of it is as good; anything computed from it is not.
    plain_mask = getattr(_root(mask), "causal_mask", None) == _layout(mask)
    return None if plain_mask else "has a mask of its own"


def _unknown_setting(settings: dict, plain) -> str | None:
    """The name of something passed that the plain function takes and segments do not honour; or None."""
    for name in _parameters(plain.func):
        value = settings.get(name)
        if value is not None and name not in _HONOURED and not (name == "dropout" and value == 0):
            return name
    return None


@cache
def _parameters(function) -> tuple[str, ...]:
    """What an attention function takes beside module, query, key, value and mask."""
    return tuple(inspect.signature(function).parameters)[5:]
