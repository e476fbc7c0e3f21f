"""The segments of a batch as a CUDA graph needs them: at fixed addresses and sizes, with the length on the device."""

from contextlib import contextmanager
from functools import partial

import torch

from adapt_kernels.hf.kv.segments import SegmentedLayer

# Far from what keys and values hold, and small enough for products in float16: whoever reads it gives other logits.
_POISON = 10.0


class FixedRows:
    """Segmented layers whose forwards, inside `shown`, write one position at `position` [1] int64 and read all that
    there is room for; the model's mask leaves out what is not written.

    Nothing here keeps a buffer alive: segments that grow meanwhile give the old ones back at once.
    """

    def __init__(self, layers: list[SegmentedLayer], slots: int):
        """slots: of the buffers, from the first on; they may hold rows that have left, never fewer than live."""
        self._layers, self._slots = layers, slots
        self.capacity = layers[0].capacity
        self.position = torch.zeros(1, dtype=torch.int64, device=layers[0].device)

    @contextmanager
    def shown(self):
        """The model sees a cache of `capacity` - 1 positions that takes one more."""
        for layer in self._layers:
            layer.update = partial(self._write, *layer.whole(self._slots))  # type: ignore[method-assign]  # until `del`
            layer.get_seq_length = self._full  # type: ignore[method-assign]
            # Else transformers looks at the mask's values, to see whether it needs one.
            layer.is_compileable = True
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.update, layer.get_seq_length, layer.is_compileable

    def _write(self, keys, values, new_keys, new_values, *args, **kwargs):
        keys.index_copy_(2, self.position, new_keys)
        values.index_copy_(2, self.position, new_values)
        return keys, values

    def _full(self) -> int:
        return self.capacity - 1

    @contextmanager
    def last_kept(self):
        """The last position is afterwards what it was before, to the last bit."""
        last = [tensor[:, :, self._length - 1] for tensor in self._whole()]
        copies = [tensor.clone() for tensor in last]
        try:
            yield
        finally:
            for tensor, copy in zip(last, copies, strict=True):
                tensor.copy_(copy)

    def poison(self) -> None:
        """What is not written yet shows in the logits of a model that reads it."""
        self._fill(_POISON)

    def clear(self) -> None:
        """What is not written yet is finite: masked positions count times 0."""
        self._fill(0.0)

    def count(self) -> None:
        """Take in the position that a replay has written."""
        for layer in self._layers:
            layer.count()

    @property
    def _length(self) -> int:
        return self._layers[0].get_seq_length()

    def _whole(self):
        return (tensor for layer in self._layers for tensor in layer.whole(self._slots))

    def _fill(self, value: float) -> None:
        length = self._length
        for tensor in self._whole():
            tensor[:, :, length:] = value
