"""Where the prompts' KV lies under plan "full": in every row, or once per prompt."""

from contextlib import nullcontext

import torch

from adapt_kernels.dispatch import backend_module, unavailable_reason
from adapt_kernels.hf.segments import SegmentedLayer, bytes_per_position, plain_layers
from adapt_kernels.hf.shared_prompts import (
    PromptRows,
    SharedPromptLayer,
    marking_keys,
    reading_segments,
    shared_layout_reason,
)

# Bytes of prompt KV per layer that rows would read again, from which sharing pays on a CPU (measured).
_WORTH_SHARING = 16 << 20


def _fits_triton(layers) -> bool:
    """Whether the kernel that reads shared prompts on a GPU can run, and takes these layers' keys and values."""
    if unavailable_reason("triton") is not None:
        return False
    kernel = backend_module("segment_attention", "triton")
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return all(t.dtype != torch.float64 and t.shape[-1] <= kernel.LARGEST_HEAD for t in tensors)


class RowsLayout:
    """Every row holds its prompt; the model's own attention reads it."""

    def __init__(self, prompt_length: int):
        self.kept_prompt = prompt_length  # positions that every row holds for itself

    def attention(self):
        """A context in which the model's attention reads this layout."""
        return nullcontext()

    def layer(self, plain, ledger, allotment):
        """The cache layer in the place of the prefill's."""
        return SegmentedLayer(plain, ledger, allotment)

    def place(self, prompts, cache) -> None:
        """Slots have changed; prompts [slots] int64 on the CPU: the prompt of each."""


class SharedLayout:
    """Each prompt's KV once; `segment_attention` reads it for all rows of the prompt."""

    kept_prompt = 0

    def __init__(self, model, num_prompts: int, starts, drop_at: float, device):
        self._model, self._drop_at = model, drop_at
        self._rows = PromptRows(num_prompts, starts, device)

    def attention(self):
        return reading_segments(self._model)

    def layer(self, plain, ledger, allotment):
        return SharedPromptLayer(plain, ledger, allotment, self._rows)

    def place(self, prompts, cache) -> None:
        kept = self._rows.place(prompts, self._drop_at)
        if kept is not None:
            for layer in cache.layers:
                if isinstance(layer, SharedPromptLayer):
                    layer.keep_prompts(kept)


class LayoutChoice:
    """Picks the layout of one call: refuses before anything is computed, decides after the prefill has shown the KV."""

    def __init__(self, asked: str, model, first_rows, rows: int, attention_mask, device):
        """asked: "auto", "rows" or "shared"; first_rows [P] int64 on the CPU: a row of each prompt."""
        self._model, self._asked, self._device = model, asked, device
        self._prompts, self._copies = len(first_rows), rows - len(first_rows)
        self._mask = None if attention_mask is None else attention_mask[first_rows.to(device)]
        self._possible = asked == "shared" or (asked == "auto" and self._copies > 0)
        if self._possible and (reason := shared_layout_reason(model, self._mask)) is not None:
            if asked == "shared":
                raise ValueError(
                    f"kv_layout='shared' cannot serve this call: {reason}. Change that, or leave kv_layout out"
                )
            self._possible = False

    def watching(self, cache):
        """Run the prefill inside; `choose` takes what this yields."""
        return marking_keys(self._model, cache) if self._possible else nullcontext()

    def choose(self, marks, cache, prompt_length: int, drop_at: float):
        if not self._possible or not self._shares(marks, cache, prompt_length):
            return RowsLayout(prompt_length)
        starts = None if self._mask is None else (self._mask == 0).sum(1)
        return SharedLayout(self._model, self._prompts, starts, drop_at, self._device)

    def _shares(self, marks, cache, prompt_length: int) -> bool:
        if self._asked == "shared" and not marks.all_read():
            raise ValueError(
                f"kv_layout='shared' cannot serve this call: {type(self._model).__name__}'s attention does not read the"
                " keys that its cache returns (it computes others from them). Leave kv_layout out"
            )
        if self._asked == "shared":
            return True
        layers = plain_layers(cache)
        # A layer elsewhere would need the rows' prompts there.
        if not layers or not marks.all_read() or any(layer.device != self._device for layer in layers):
            return False
        if self._device.type == "cuda":
            return _fits_triton(layers)
        copied = self._copies * prompt_length * bytes_per_position(cache)
        return self._device.type == "cpu" and copied >= _WORTH_SHARING * len(layers)
