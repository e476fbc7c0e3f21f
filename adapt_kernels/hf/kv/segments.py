"""The KV cache of plan "full": prompt, early and late segments of every row, written in place.

Rows of one call always have the same length, so the segments of a layer lie in one buffer per tensor,
[slots, heads, capacity, head_dim]: the prompt, then `early` positions for every row, then late ones for the rows still
alive when the early ones are full. A row that leaves gives its slot to one from the tail: nothing is reallocated until
the buffer grows.
"""

import torch
from transformers.cache_utils import DynamicLayer

from adapt_kernels.hf.kv.store import KVStore, checked_index
from adapt_kernels.hf.outputs import tensor_bytes


class KVLedger:
    """Counts the bytes of all segments of one call: `live_bytes` now, `peak_bytes` at most."""

    def __init__(self):
        self.live_bytes = self.peak_bytes = self._recent_peak = 0

    def recent_peak(self) -> int:
        """The most bytes since this was last asked."""
        peak, self._recent_peak = self._recent_peak, self.live_bytes
        return peak

    def allocate(self, like, shape) -> torch.Tensor:
        """An uninitialised tensor on the device and with the dtype of `like`."""
        return self.adopt(like.new_empty(shape))

    def adopt(self, tensor) -> torch.Tensor:
        """Count a contiguous tensor that exists already."""
        self.live_bytes += tensor.untyped_storage().nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._recent_peak = max(self._recent_peak, self.live_bytes)
        return tensor

    def release(self, tensor) -> None:
        """Stop counting it; the caller drops its last reference."""
        self.live_bytes -= tensor.untyped_storage().nbytes()


class SegmentedLayer(DynamicLayer, KVStore):
    """A `DynamicLayer` whose `update` writes in place; made from one that holds the prompts of a call.

    `reorder_cache` takes any index: shorter (rows leave), repeated (a prompt becomes its samples), permuted.
    """

    def __init__(self, layer: DynamicLayer, ledger: KVLedger, allotment):
        super().__init__()
        # Layers know their dtype up to transformers 5.23.
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.device, True
        self._ledger, self._allotment = ledger, allotment
        self.rebuilt = 0  # how often the buffers were exchanged
        self._length, self._slots = layer.keys.shape[-2], len(layer.keys)
        self.seen = self._length
        self._buffers = [ledger.adopt(layer.keys.contiguous()), ledger.adopt(layer.values.contiguous())]
        self._narrow()

    def update(self, key_states, value_states, *args, **kwargs):
        """Write [slots, heads, q, head_dim] behind the last position; returns views of all positions so far."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._room:
            self._rebuild(torch.arange(self._slots), self._allotment.capacity(self._length))
            self._narrow()
        width = self._length - start
        self.seen += width
        self._view(0, start, width).copy_(key_states)
        self._view(1, start, width).copy_(value_states)
        return self._show()

    def append(self, keys, values) -> tuple[torch.Tensor, torch.Tensor]:
        return self.update(keys, values)

    def row_keys(self, slot: int) -> torch.Tensor:
        """[heads, positions, head_dim]: the keys of one slot."""
        return self.keys[slot]

    @property
    def capacity(self) -> int:
        """Positions per row that there is room for."""
        return self._room

    @property
    def _room(self) -> int:
        return self._buffers[0].shape[-2]

    @property
    def slots_held(self) -> int:
        """Slots of the buffers, those of rows that have left among them."""
        return len(self._buffers[0])

    def whole(self, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All that there is room for in the buffers' first slots, also where rows have left."""
        return self._buffers[0][:slots], self._buffers[1][:slots]

    def count(self) -> None:
        """Take in a position that was written into `whole`."""
        self._length, self.seen = self._length + 1, self.seen + 1
        self._show()

    @property
    def held(self) -> int:
        return self.get_seq_length()

    def get_seq_length(self) -> int:
        return self._length

    def reorder(self, index) -> None:
        self.reorder_cache(index)

    def reorder_cache(self, beam_idx) -> None:
        index = beam_idx.cpu()
        moved = (index != torch.arange(len(index))).nonzero()[:, 0]
        # Rows from beyond the new end fill holes before it: no row is both read and written.
        if len(index) <= self._slots and bool((index[moved] >= len(index)).all()):
            for buffer in self._buffers:
                used = buffer[:, :, : self._length]
                here = moved.to(buffer.device, non_blocking=True)
                used[here] = used[index[moved].to(buffer.device, non_blocking=True)]
        else:
            self._rebuild(index, max(self._room, self._allotment.capacity(self._length)))
        self._slots = len(index)
        self._narrow()

    def give_back(self) -> None:
        """Let go of the memory of rows that have left: otherwise that comes when the buffers grow next."""
        if self._slots < len(self._buffers[0]):
            self._rebuild(torch.arange(self._slots), self._room)
            self._narrow()

    def keep(self, index) -> None:
        index = checked_index(index, self._slots, self._buffers[0].shape[1], self.held)
        if index.shape[-1] < self.held:
            self._keep(index)

    def _keep(self, index) -> None:
        count = index.shape[-1]
        stays = (index == torch.arange(count, device=index.device)).flatten(0, 1).all(0)
        first = int(stays.long().cumprod(0).sum())
        slots, heads = (torch.arange(n, device=index.device) for n in (self._slots, self._buffers[0].shape[1]))
        moved = slots[:, None, None], heads[:, None], index[..., first:]
        for i in range(len(self._buffers)):
            # Ascending positions only move left, and the taken ones are the only copy, of one tensor at a time.
            self._view(i, first, count - first).copy_(self._view(i, 0, self._length)[moved])
        self._length = count
        self._show()

    def crop(self, length: int) -> None:
        kept = self.held + length if length < 0 else length
        least = self.held - self._length
        if not least <= kept <= self.held:
            raise ValueError(f"crop must leave {least} to {self.held} of the {self.held} held positions; got {length}")
        self.seen -= self.held - kept
        self._length = kept - least
        self._show()

    def read(self, slots) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys[slots], self.values[slots]

    def counted(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = start - (self.held - self._length)
        return self._view(0, own, self._length - own), self._view(1, own, self._length - own)

    def release(self) -> None:
        """Give the segments back; the layer is empty afterwards."""
        for buffer in self._buffers:
            self._ledger.release(buffer)
        self._hide()
        self._buffers.clear()
        self._layouts.clear()
        self.is_initialized, self._length, self.seen = False, 0, 0

    def detach(self) -> DynamicLayer:
        """A plain `DynamicLayer` with the same positions; this layer is empty afterwards."""
        layer = DynamicLayer()
        layer.lazy_initialization(self.keys, self.values)
        layer.keys, layer.values = self.keys, self.values
        self.release()
        return layer

    def _rebuild(self, index, capacity: int) -> None:
        self._hide()
        self.rebuilt += 1
        for i, old in enumerate(self._buffers):
            new = self._ledger.allocate(old, (len(index), old.shape[1], capacity, old.shape[3]))
            # Positions that are about to be written may lie beyond the old buffer.
            filled = min(self._length, old.shape[2])
            for source, target in _runs(index):
                new[target, :, :filled] = old[source, :, :filled]
            self._buffers[i] = new
            self._ledger.release(old)

    def _narrow(self) -> None:
        """After the slots or the buffers changed."""
        self._layouts = [(t.shape[1], t.shape[3], t.stride(), t.storage_offset()) for t in self._buffers]
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = self._view(0, 0, self._length), self._view(1, 0, self._length)
        return self.keys, self.values

    def _hide(self) -> None:
        """Before the buffers go: no view keeps them."""
        self.keys = self.values = None  # type: ignore[assignment]  # until they are shown again

    def _view(self, i: int, start: int, width: int) -> torch.Tensor:
        """Positions of buffer i. Every layer makes four per step: as_strided takes half the time of a slice."""
        heads, dim, strides, offset = self._layouts[i]
        shape = (self._slots, heads, width, dim)
        return self._buffers[i].as_strided(shape, strides, offset + start * strides[2])


def _runs(index) -> list[tuple[slice, slice]]:
    """(old rows, new rows) slices that copy `index` without a gathered temporary."""
    if torch.equal(index, torch.arange(len(index))):
        return [(slice(0, len(index)), slice(0, len(index)))]
    rows, counts = torch.unique_consecutive(index, return_counts=True)
    ends = counts.cumsum(0)
    triples = zip(rows.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return [(slice(row, row + 1), slice(start, end)) for row, start, end in triples]


def plain_layers(cache) -> list[DynamicLayer]:
    """The layers of a cache that segments will hold."""
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer and layer.is_initialized]
    return [layer for layer in layers if layer.keys.numel()]


def bytes_per_position(cache) -> int:
    """Bytes one row needs for one position in the layers that segments will hold."""
    tensors = [tensor for layer in plain_layers(cache) for tensor in (layer.keys, layer.values)]
    return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)


def segment(cache, make_layer) -> None:
    """Replace the plain layers of a cache that holds the prompts; sliding, linear and other layers stay as they are."""
    plain = plain_layers(cache)
    cache.layers = [make_layer(layer) if layer in plain else layer for layer in cache.layers]


def reorder(cache, index, device) -> None:
    """`cache.reorder_cache(index)` for an index [slots] int64 on the CPU, without waiting for a GPU."""
    there = index.to(device, non_blocking=True)
    for layer in cache.layers:
        # Ours decide by the index what to copy.
        layer.reorder_cache(index if isinstance(layer, SegmentedLayer) else there)


def give_back(cache) -> None:
    """Let go of the memory of rows that have left."""
    for layer in cache.layers:
        if isinstance(layer, SegmentedLayer):
            layer.give_back()


def other_bytes(cache) -> int:
    """Bytes of the layers that are not segmented."""
    return sum(tensor_bytes(vars(layer)) for layer in cache.layers if not isinstance(layer, SegmentedLayer))


def release(cache) -> None:
    """Give back every segment."""
    for layer in cache.layers:
        if isinstance(layer, SegmentedLayer):
            layer.release()


def row_keys(layer, row: int) -> torch.Tensor | None:
    """[positions, heads, head_dim]: the keys that any layer of a cache holds for a row, None without keys."""
    keys = layer.row_keys(row) if isinstance(layer, SegmentedLayer) else getattr(layer, "keys", None)
    if keys is None:
        return None
    return (keys if isinstance(layer, SegmentedLayer) else keys[row]).transpose(0, 1)


def row_states(layer, row: int) -> list[torch.Tensor]:
    """The recurrent states that a layer without keys holds for a row."""
    values = [v for value in vars(layer).values() for v in (value.values() if isinstance(value, dict) else [value])]
    return [value[row] for value in values if torch.is_tensor(value) and value.ndim > 1 and len(value) > row]
