"""Whether a model may lose cached positions: each must say for itself where it stands."""

import copy
import inspect
import sys
from functools import cache

import torch
from transformers import DynamicCache, masking_utils
from transformers.cache_utils import DynamicLayer

from adapt_kernels.hf.compat import CACHE
from adapt_kernels.hf.kv.prompts import select_rows
from adapt_kernels.hf.kv.store import KVStore

LEAST = 4  # held positions from which there is something to drop in between
_FULL = "full_attention"


def reads_mask_dicts(model) -> bool:
    """Whether a model takes a mask for each kind of its layers."""
    return any(_takes_dicts(sys.modules.get(base.__module__)) for base in {type(m) for m in model.modules()})


@cache
def _takes_dicts(module) -> bool:
    named = getattr(module, "__name__", "").rpartition(".")[2].startswith("modeling_")
    return named and "attention_mask, dict)" in inspect.getsource(module)


def masks_by_kind(model, inputs: dict, kv_cache, held_mask, seen_mask) -> dict:
    """A mask for each kind of layer: full attention reads what is held, all others what they keep of what was seen.

    held_mask, seen_mask: [slots, positions]. inputs: of the forward.
    """
    make = getattr(model, "create_masks_for_generate", masking_utils.create_masks_for_generate)
    given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    shaped = torch.empty((*given.shape[:2], 0), dtype=model.dtype, device=given.device)
    known = {"config": model.config, "inputs_embeds": shaped, CACHE: kv_cache, "position_ids": inputs["position_ids"]}
    held, seen = (make(attention_mask=mask, **known) for mask in (held_mask, seen_mask))
    return {kind: held[kind] if kind == _FULL else mask for kind, mask in seen.items()}


class DroppedPositions:
    """Runs one decode step of some slots twice: with positions dropped, and with them masked.

    The first step also reverses the order of what it holds: attention is a sum over positions that carry their place in
    their keys, so nothing may change but rounding. Costs two forwards of two rows, once per model and attention
    implementation.
    """

    def __init__(self, model, by_kind: bool):
        self._model, self._by_kind = model, by_kind

    @torch.no_grad()
    def fault(self, kv_cache, kwargs: dict, input_ids) -> str | None:
        """Why the model may not lose positions, or None.

        input_ids [slots, T], kwargs: of the step to come; nothing of the call is changed. Host syncs: some.
        """
        slots = self._slots(kwargs.get("attention_mask"), len(input_ids)).to(input_ids.device)
        held = next(layer.held for layer in kv_cache.layers if isinstance(layer, KVStore))
        some = select_rows(kwargs, slots)
        inputs = self._model.prepare_inputs_for_generation(input_ids[slots], next_sequence_length=1, **some)
        if inputs.get("position_ids") is None:
            return "takes no position_ids, so it counts positions by what the cache holds"
        place = torch.arange(held, device=input_ids.device)
        dropped = (place >= held // 2) & (place % 2 == (held // 2) % 2) & (place < held - 1)
        mask = inputs.get("attention_mask")
        mask = torch.ones(len(slots), held + 1, dtype=torch.int64, device=place.device) if mask is None else mask
        masked = mask.masked_fill(torch.nn.functional.pad(dropped, (0, 1)), 0)
        kept = place[~dropped].flip(0)
        short = torch.cat([mask[:, kept], mask[:, -1:]], 1)
        whole = self._logits(inputs, self._copy(kv_cache, slots, place), masked, mask)
        cut = self._logits(inputs, self._copy(kv_cache, slots, kept), short, mask)
        tolerance = max(1e-3, 16 * torch.finfo(whole.dtype).eps) * float(whole.float().abs().max())
        if bool(((whole.float() - cut.float()).abs() <= tolerance).all()):
            return None
        return "reads from the order or number of cached positions where they stand"

    def _slots(self, mask, slots: int) -> torch.Tensor:
        """Those with the least and the most padding."""
        padding = torch.zeros(slots) if mask is None else (mask == 0).sum(1)
        return torch.tensor([int(padding.argmin()), int(padding.argmax())]).unique()

    def _logits(self, inputs: dict, kv_cache, held_mask, seen_mask) -> torch.Tensor:
        mask = held_mask
        if self._by_kind:
            mask = masks_by_kind(self._model, inputs, kv_cache, held_mask, seen_mask)
        return self._model(**{**inputs, "attention_mask": mask, CACHE: kv_cache}, return_dict=True).logits[:, -1]

    def _copy(self, kv_cache, slots, place):
        copied = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        copied.layers = [self._copied(layer, slots, place) for layer in kv_cache.layers]
        return copied

    def _copied(self, layer, slots, place):
        if not isinstance(layer, KVStore):
            other = copy.deepcopy(layer)
            other.reorder_cache(slots)
            return other
        plain = DynamicLayer()
        plain.update(*(tensor[:, :, place] for tensor in layer.read(slots)))
        return plain
