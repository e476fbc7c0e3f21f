"""Layout "shared": each prompt's KV stored once and read by all its rows.

`SharedPromptLayer.update` marks the keys it returns; the attention function of `segment_reading` that finds the mark
reads the segments instead. In the first decode step of a model the layer returns every row's whole keys and values, so
that the function can hold what it reads against the model's own attention.
"""

import torch
from transformers.cache_utils import DynamicLayer

from adapt_kernels.hf.kv.segments import SegmentedLayer
from adapt_kernels.ops.segment_attention import RowGroups, Segment, group_rows, segment_attention


class PromptRows:
    """Which prompt each slot reads, for all layers of a call."""

    def __init__(self, num_prompts: int, starts, device="cpu"):
        """starts [P] int64: the first position of each prompt that is no padding; None = 0."""
        self._held, self._prompt_starts, self._device = torch.arange(num_prompts), starts, device
        self.groups: RowGroups
        self.starts: torch.Tensor | None = None
        self.padded = starts is not None  # whether a slot may have padding; known only to a GPU's memory there

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
            starts = self._prompt_starts[prompts.to(self._device, non_blocking=True)]
            self.starts, self.padded = starts, starts.is_cuda or bool(starts.any())
        return kept


def _read_by_the_model(i: int) -> property:
    """`keys` or `values` of a layer, as a model may read them past `update`: it then cannot share prompts."""

    def read(layer) -> torch.Tensor | None:
        if layer.proof is None:
            raise RuntimeError("this model reads its cache by itself: call generate with kv_layout='rows'")
        layer.proof.fault = "reads its cache by itself"
        return layer._whole(i)

    return property(read, lambda layer, value: None)


class SharedPromptLayer(SegmentedLayer):
    """Prompts [P, heads, length, head_dim] once, and the new positions of every slot in segments of its own.

    `reorder_cache` moves slots; the prompts stay until `keep_prompts`, and `PromptRows.place` says which slot reads
    which. unread: whether attention has still to read what `update` returned. proof: while the model is not known to
    read segments rightly, its `segment_reading.ReadingProof`; else None.
    """

    keys, values = _read_by_the_model(0), _read_by_the_model(1)

    def __init__(self, layer: DynamicLayer, ledger, allotment, rows: PromptRows, proof=None):
        self.rows, self.proof, self.unread = rows, proof, False
        self._prompt = [ledger.adopt(layer.keys.contiguous()), ledger.adopt(layer.values.contiguous())]
        self._prompt_length = layer.keys.shape[-2]
        own = DynamicLayer()
        own.lazy_initialization(layer.keys, layer.values)
        own.keys, own.values = (t.new_empty(*t.shape[:2], 0, t.shape[3]) for t in self._prompt)
        super().__init__(own, ledger, allotment)
        self.seen = self._prompt_length

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        if self.proof is not None:
            self.proof.issue(self)
            keys, values = self._whole(0), self._whole(1)
        keys.segments_of, self.unread, self.shown_values = self, self.proof is None, values
        return keys, values

    def attend(self, query, **settings) -> torch.Tensor:
        """[slots, Hq, Dv] for query [slots, Hq, D]; settings of `segment_attention`."""
        self.unread = False
        keys, values = self._prompt
        segments = (Segment(keys, values, self.rows.groups), Segment(*self._own))
        return segment_attention(query, segments, starts=self.rows.starts, **settings)

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._own = self._view(0, 0, self._length), self._view(1, 0, self._length)
        return self._own

    def _hide(self) -> None:
        self._own = self.shown_values = None  # type: ignore[assignment]  # until they are shown again

    def row_keys(self, slot: int) -> torch.Tensor:
        return torch.cat([self._prompt[0][self.rows.groups.group_of_row[slot]], self._own[0][slot]], 1)

    @property
    def capacity(self) -> int:
        return self._prompt_length + self._room

    def get_seq_length(self) -> int:
        return self._prompt_length + self._length

    def _keep(self, index) -> None:
        prompt = self._prompt_length
        if index.shape[-1] < prompt or not bool((index[..., :prompt] < prompt).all()):
            raise ValueError(f"index must hold the prompt's positions 0 to {prompt - 1}: rows share them")
        super()._keep(index[..., prompt:] - prompt)

    def read(self, slots) -> tuple[torch.Tensor, torch.Tensor]:
        groups = self.rows.groups.group_of_row[slots]
        pairs = zip(self._prompt, self._own, strict=True)
        keys, values = (torch.cat([prompt[groups], own[slots]], 2) for prompt, own in pairs)
        return keys, values

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
        layer.lazy_initialization(*self._own)
        layer.keys, layer.values = self._whole(0), self._whole(1)
        self.release()
        return layer

    def _whole(self, i: int) -> torch.Tensor:
        """[slots, heads, all positions, head_dim]: every slot's prompt and its own positions."""
        return torch.cat([self._prompt[i][self.rows.groups.group_of_row], self._own[i]], 2)
