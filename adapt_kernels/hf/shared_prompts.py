"""Layout "shared": each prompt's KV stored once and read by all its rows, by an attention function of our own.

`SharedPromptLayer.update` marks the keys it returns; the attention function that finds the mark reads the segments
instead, and passes everything else on to the implementation the model had. So other layers, other models and other
threads see no difference while the implementation is switched.
"""

import sys
import threading
from contextlib import contextmanager
from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer

from adapt_kernels.hf.segments import SegmentedLayer
from adapt_kernels.ops.segment_attention import Segment, group_rows, segment_attention

_NAMES = {"sdpa": "adapt_segments_or_sdpa", "eager": "adapt_segments_or_eager"}
_LOCK = threading.Lock()
_USERS: dict[int, int] = {}  # calls under way, by the id of the config that is switched


class PromptRows:
    """Which prompt each slot reads, for all layers of a call."""

    def __init__(self, num_prompts: int, starts, device="cpu"):
        """starts [P] int64: the first position of each prompt that is no padding; None = 0."""
        self._held, self._prompt_starts, self._device = torch.arange(num_prompts), starts, device
        self.groups = self.starts = None

    def place(self, prompts, drop_at: float = 0.0):
        """prompts [slots] int64, on the CPU: the prompt of each slot from now on.

        Where at most a share `drop_at` of the held prompts is still read: the held ones to keep, int64; else None.
        """
        read, kept = prompts.unique(), None
        if len(read) < len(self._held) and len(read) <= drop_at * len(self._held):
            kept, self._held = torch.searchsorted(self._held, read), read
        groups = group_rows(torch.searchsorted(self._held, prompts), len(self._held))
        self.groups = groups.to(self._device)
        if self._prompt_starts is not None:
            self.starts = self._prompt_starts[prompts.to(self._device, non_blocking=True)]
        return kept


class SharedPromptLayer(SegmentedLayer):
    """Prompts [P, heads, length, head_dim] once, and the new positions of every slot in segments of its own.

    `reorder_cache` moves slots; the prompts stay until `keep_prompts`, and `PromptRows.place` says which slot reads
    which.
    """

    def __init__(self, layer: DynamicLayer, ledger, allotment, rows: PromptRows):
        self._rows, self._unread = rows, False
        self._prompt = [ledger.adopt(layer.keys.contiguous()), ledger.adopt(layer.values.contiguous())]
        self._prompt_length = layer.keys.shape[-2]
        own = DynamicLayer()
        own.lazy_initialization(layer.keys, layer.values)
        own.keys, own.values = (t.new_empty(*t.shape[:2], 0, t.shape[3]) for t in self._prompt)
        super().__init__(own, ledger, allotment)

    def update(self, key_states, value_states, *args, **kwargs):
        if self._unread:
            raise RuntimeError(
                "this model's attention does not read the keys its cache returns: call generate with kv_layout='rows'"
            )
        keys, values = super().update(key_states, value_states)
        keys.segments_of, self._unread = self, True
        return keys, values

    def attend(self, query, **settings) -> torch.Tensor:
        """[slots, Hq, Dv] for query [slots, Hq, D]; settings of `segment_attention`."""
        self._unread = False
        segments = (Segment(*self._prompt, self._rows.groups), Segment(self.keys, self.values))
        return segment_attention(query, segments, starts=self._rows.starts, **settings)

    @property
    def capacity(self) -> int:
        return self._prompt_length + self._room

    def get_seq_length(self) -> int:
        return self._prompt_length + self._length

    def keep_prompts(self, index) -> None:
        """Give the KV of all other prompts back; index int64."""
        for i, old in enumerate(self._prompt):
            self._prompt[i] = self._ledger.adopt(old[index.to(old.device, non_blocking=True)])
            self._ledger.release(old)

    def release(self) -> None:
        super().release()
        for tensor in self._prompt:
            self._ledger.release(tensor)
        self._prompt, self._prompt_length = [], 0

    def detach(self) -> DynamicLayer:
        layer = DynamicLayer()
        layer.lazy_initialization(self.keys, self.values)
        own = (self.keys, self.values)
        prompts = self._rows.groups.group_of_row
        layer.keys, layer.values = (torch.cat([p[prompts], t], 2) for p, t in zip(self._prompt, own, strict=True))
        self.release()
        return layer


def shared_layout_reason(model, attention_mask) -> str | None:
    """Why a model cannot read shared prompts, or None."""
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not take attention functions"
    if model.config._attn_implementation not in (*_NAMES, *_NAMES.values()):
        return f"attn_implementation is {model.config._attn_implementation!r}; it must be 'sdpa' or 'eager'"
    if attention_mask is not None and bool((attention_mask.diff(dim=1) < 0).any()):
        return "attention_mask must be left padding: zeros, then ones"
    return None


class KeyMarks(list):
    """One per cache layer and update: whether attention read the keys as the layer returned them."""

    def all_read(self) -> bool:
        return all(mark.read for mark in self)


class _Mark:
    read = False


@contextmanager
def marking_keys(model, cache):
    """Run the prefill inside; then the yielded `KeyMarks` tell whether the model can read `SharedPromptLayer`s."""
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
    keys.segments_of = _Mark()
    marks.append(keys.segments_of)
    return keys, values


@contextmanager
def reading_segments(model):
    """The model's attention reads `SharedPromptLayer`s inside this block."""
    config = model.config
    _register()
    with _LOCK:
        _USERS[id(config)] = _USERS.get(id(config), 0) + 1
        if config._attn_implementation in _NAMES:
            config._attn_implementation = _NAMES[config._attn_implementation]
    try:
        yield
    finally:
        with _LOCK:
            _USERS[id(config)] -= 1
            if _USERS[id(config)] == 0:
                del _USERS[id(config)]
                plain = next(name for name, ours in _NAMES.items() if ours == config._attn_implementation)
                config._attn_implementation = plain


def _register() -> None:
    # Both registries: without a mask function of the same name padding would be ignored.
    for plain, ours in _NAMES.items():
        AttentionInterface.register(ours, _FUNCTIONS[plain])
        AttentionMaskInterface.register(ours, partial(_mask, AttentionMaskInterface()[plain]))


def _mask(plain, *args, **kwargs):
    if kwargs.get("q_length") == 1 and _waits(kwargs.get("device")):
        # Whether there is padding is in the device's memory, and our segments need no mask.
        kwargs["allow_is_causal_skip"] = False
    return plain(*args, **kwargs)


def _waits(device) -> bool:
    """Whether reading a value of the device makes the host wait for what is queued there."""
    return device is not None and torch.device(device).type == "cuda"


def _segments_or_sdpa(module, query, key, value, attention_mask, **settings):
    # Some releases of transformers leave a softcap out here, the others refuse it; none has sinks.
    out = _attend_segments(query, key, {**settings, "softcap": None, "s_aux": None})
    if out is not None:
        return out
    return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **settings)


def _segments_or_eager(module, query, key, value, attention_mask, **settings):
    out = _attend_segments(query, key, settings)
    if out is not None:
        return out
    # Every modeling file has an eager function of its own.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **settings)


def _attend_segments(query, key, settings: dict):
    """(output [slots, 1, Hq, Dv], None), or None when the keys are not ours."""
    layer = getattr(key, "segments_of", None)
    if layer is None:
        return None
    if isinstance(layer, _Mark):
        layer.read = settings.get("position_bias") is None  # which segment_attention does not take
        return None
    known = {
        "softcap": settings.get("softcap"),
        "sinks": settings.get("s_aux"),
        "window": settings.get("sliding_window"),
    }
    return layer.attend(query[:, :, 0], scale=settings.get("scaling"), **known)[:, None], None


_FUNCTIONS = {"sdpa": _segments_or_sdpa, "eager": _segments_or_eager}
