"""Where the prompts' KV lies under plan "full": in every row, or once per prompt."""

from contextlib import nullcontext

import torch

from adapt_kernels.dispatch import backend_module, unavailable_reason
from adapt_kernels.hf.kv.attention import (
    UNREAD,
    ReadingProof,
    marking_keys,
    reading_segments,
    shared_layout_reason,
)
from adapt_kernels.hf.kv.segments import SegmentedLayer, bytes_per_position, plain_layers
from adapt_kernels.hf.kv.shared_prompts import PromptRows, SharedPromptLayer
from adapt_kernels.hf.plan import SHARED, Plan

# Bytes of prompt KV per layer that rows would read again, from which sharing pays: measured on a CPU; a GPU of 3 TB/s
# reads them in 5 us, which is what one launch more costs.
_WORTH_SHARING = 16 << 20
_NO_COPIES = "no rows share a prompt"


def _fits_triton(layers) -> bool:
    """Whether the kernel that reads shared prompts on a GPU can run, and takes these layers' keys and values."""
    if unavailable_reason("triton") is not None:
        return False
    kernel = backend_module("segment_attention", "triton")
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return all(t.dtype != torch.float64 and t.shape[-1] <= kernel.LARGEST_HEAD for t in tensors)


class RowsLayout:
    """Every row holds its prompt; the model's own attention reads it."""

    proof = None

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
    """Each prompt's KV once; `segment_attention` reads it for all rows of the prompt.

    proof: of the first decode step, while it is not known whether the model reads segments rightly; else None.
    """

    kept_prompt = 0

    def __init__(self, model, num_prompts: int, starts, drop_at: float, device, proof: ReadingProof | None):
        self._model, self._drop_at, self.proof = model, drop_at, proof
        self._rows = PromptRows(num_prompts, starts, device)

    def attention(self):
        return reading_segments(self._model)

    def layer(self, plain, ledger, allotment):
        return SharedPromptLayer(plain, ledger, allotment, self._rows, self.proof)

    def place(self, prompts, cache) -> None:
        kept = self._rows.place(prompts, self._drop_at)
        if kept is not None:
            for layer in cache.layers:
                if isinstance(layer, SharedPromptLayer):
                    layer.keep_prompts(kept)


class LayoutChoice:
    """Picks the layout of one call, each time as another plan: before anything is computed, after the prefill has shown
    the KV, and when a model turns out not to read it rightly.

    Raises ValueError that says why where "shared" was asked for by name and cannot be.
    """

    def __init__(self, asked: str, model, faults: dict, first_rows, rows: int, attention_mask, device):
        """asked: "auto", "rows" or "shared"; first_rows [P] int64 on the CPU: a row of each prompt.

        faults: what earlier calls found out about this model: why its attention cannot read segments, or None where it
            can, by attention implementation and kind of device.
        """
        self._model, self._asked, self._device = model, asked, device
        self._prompts, self._copies = len(first_rows), rows - len(first_rows)
        self._mask = None if attention_mask is None else attention_mask[first_rows.to(device)]
        self._faults = faults

    def at_first(self, plan: Plan) -> Plan:
        if self._asked == "rows":
            return plan.with_rows("kv_layout='rows'")
        if self._asked == "auto" and not self._copies and not self._waits_for_mask:
            return plan.with_rows(_NO_COPIES)
        reason = shared_layout_reason(self._model, self._mask)
        if reason is not None:
            return self._rows(plan, reason, "Change that, or leave kv_layout out")
        fault = self._faults.get(self.kind)
        return plan if fault is None else self._unreadable(plan, fault)

    def without_virtual_tokens(self, plan: Plan) -> Plan:
        """Zeros of the mask are then not where padding is."""
        return self._rows(plan, "the cache holds other positions than the attention mask (virtual tokens)")

    def without_counted_prompts(self, plan: Plan) -> Plan:
        """Rows drop positions of their prompts."""
        remedy = "Take count='new', or leave kv_layout out"
        return self._rows(plan, "kv_keep with count='all' drops the padding of prompts", remedy)

    def _rows(self, plan: Plan, reason: str, remedy: str = "Leave kv_layout out") -> Plan:
        if self._asked == "shared":
            raise ValueError(f"kv_layout='shared' cannot serve this call: {reason}. {remedy}")
        return plan.with_rows(reason) if plan.layout == SHARED else plan

    def _unreadable(self, plan: Plan, fault: str) -> Plan:
        return self._rows(plan, f"{type(self._model).__name__}'s attention {fault}")

    @property
    def kind(self) -> tuple[str, str]:
        """What findings about the model hold for: its attention implementation and kind of device."""
        config = self._model.config.get_text_config(decoder=True)
        return str(config._attn_implementation), self._device.type

    def watching(self, plan: Plan, cache):
        """Run the prefill inside; `choose` takes what this yields. Without "shared" by name it is the plain one."""
        shared = plan.layout == SHARED and self._asked == "shared"
        return marking_keys(self._model, cache) if shared else nullcontext()

    def choose(self, plan: Plan, marks, cache, prompt_length: int, drop_at: float):
        """(the plan, its layout). marks: of `watching`; prompt_length: positions of a prompt in the cache, as the
        attention mask has them."""
        if marks is not None and not marks.all_read():
            plan = self._unreadable(plan, UNREAD)
        if plan.layout == SHARED and not self._pays(cache, prompt_length):
            plan = plan.with_rows("reading the prompts' copies costs less here" if self._copies else _NO_COPIES)
        if plan.layout != SHARED:
            return plan, RowsLayout(prompt_length)
        starts = None if self._mask is None else (self._mask == 0).sum(1)
        proof = None if self.kind in self._faults else ReadingProof()
        return plan, SharedLayout(self._model, self._prompts, starts, drop_at, self._device, proof)

    def settle(self, plan: Plan, layout, cache) -> Plan:
        """After a forward: the plan to go on with; another one needs other layers in `cache`.

        Raises RuntimeError where a model that was proved to read segments has not read some.
        """
        layers = [layer for layer in cache.layers if isinstance(layer, SharedPromptLayer)]
        if layout.proof is None and any(layer.unread for layer in layers):
            raise RuntimeError(f"this model's attention {UNREAD}: call generate with kv_layout='rows'")
        if layout.proof is None or not layout.proof.begun:
            return plan
        fault = self._faults[self.kind] = layout.proof.finish()
        if fault is not None:
            return self._unreadable(plan, fault)
        for holder in (layout, *layers):
            holder.proof = None
        return plan

    def _pays(self, cache, prompt_length: int) -> bool:
        if self._asked == "shared":
            return True
        layers = plain_layers(cache)
        # A layer elsewhere would need the rows' prompts there.
        if not layers or any(layer.keys.device != self._device for layer in layers):
            return False
        if self._device.type not in ("cpu", "cuda") or (self._device.type == "cuda" and not _fits_triton(layers)):
            return False
        copied = self._copies * prompt_length * bytes_per_position(cache)
        return self._waits_for_mask or copied >= _WORTH_SHARING * len(layers)

    @property
    def _waits_for_mask(self) -> bool:
        """Whether the model's own attention would make the host wait at every step, to see whether there is padding.

        Where there is none, transformers drops the mask before the call, or (5.17) keeps it and asks all the same.
        """
        return self.kind == ("sdpa", "cuda") and self._mask is not None
