"""Plan "full" under `kv_keep`: rows whose full-attention layers hold a bounded number of positions."""

from contextlib import ExitStack, contextmanager

import torch
from transformers import cache_utils

from adapt_kernels.hf.compat import existing
from adapt_kernels.hf.kv.attention import reading_segments, shared_layout_reason
from adapt_kernels.hf.kv.batch import BranchedBatch
from adapt_kernels.hf.kv.cached import cache_of, given_width
from adapt_kernels.hf.kv.keep import Keeper
from adapt_kernels.hf.kv.keep_proof import LEAST, DroppedPositions, masks_by_kind, reads_mask_dicts
from adapt_kernels.hf.kv.rebuilt_cache import RebuiltCache, rebuild
from adapt_kernels.hf.kv.segments import release
from adapt_kernels.hf.kv.store import KVStore
from adapt_kernels.hf.kv.watching import LayerWatch, last_hidden, watched_inputs

_SLIDING = existing(cache_utils, "DynamicSlidingWindowLayer", "LinearAttentionAndSlidingWindowAttentionLayer")
# Layers that hold nothing of their own, or nothing that is addressed by position.
_OTHERS = existing(cache_utils, "DummyLayer", "LinearAttentionLayer")


def keep_reason(model, settings, kv_cache) -> str | None:
    """Why a model cannot hold a bounded cache, as far as that can be told without running it; or None."""
    kinds = [type(layer) for layer in kv_cache.layers]
    other = [kind.__name__ for kind in kinds if kind not in (cache_utils.DynamicLayer, *_SLIDING, *_OTHERS)]
    if other:
        return f"cache layers of type {other[0]} are not known to drop positions"
    if kinds and cache_utils.DynamicLayer not in kinds:
        return "it has no full-attention layer: what it holds is bounded already"
    if any(kind in _SLIDING for kind in kinds) and not reads_mask_dicts(model):
        return "its full and sliding layers share one mask, and would need two"
    if settings.by_head and model.get_output_embeddings() is None:
        return "it has no output embeddings whose input a TokenScorer could read"
    watched = settings.queries or not (isinstance(settings.score, str) or settings.by_head)
    return shared_layout_reason(model, None) if watched else None


def counted_prompt(settings, input_ids, model_kwargs) -> int:
    """Positions of the prompt, padding included, that count."""
    return given_width(input_ids, model_kwargs) if settings is not None and settings.count == "all" else 0


class KeptBatch(BranchedBatch):
    """A `BranchedBatch` whose rows drop positions under `call.keep`."""

    def __init__(self, model, config, input_ids, model_kwargs, plan, call, most_new: int):
        self._settings = call.keep
        most_held = self._most_held(input_ids, model_kwargs, most_new)
        super().__init__(model, config, input_ids, model_kwargs, plan, call, most_held)
        if self._settings.count == "all":
            self.plan = self._choice.without_counted_prompts(self.plan)
        hidden = 0 if isinstance(self._settings.score, str) or self._settings.by_head else self._settings.window or 1
        self._wanted = (self._settings.queries, hidden)
        self._watches: dict[object, LayerWatch] = {}
        self._by_kind = any(type(layer) in _SLIDING for layer in cache_of(model_kwargs).layers)
        seeds = call.rows.seeds if call.rows.seeds is None else call.rows.seeds.to(self._device)
        mask = model_kwargs.get("attention_mask")
        width = given_width(input_ids, model_kwargs)
        self._keeper = Keeper(self._settings, mask, width, seeds, call.thoughts)
        self._proof = DroppedPositions(model, self._by_kind)
        self._hidden = None

    def _most_held(self, input_ids, model_kwargs, most_new: int) -> int:
        """The new tokens that buffers must have room for, one more than their positions."""
        if self._settings.everything:
            return most_new
        return min(most_new, self._settings.budget + 2 - counted_prompt(self._settings, input_ids, model_kwargs))

    def _layer(self, plain):
        layer = super()._layer(plain)
        if any(self._wanted):
            watch = self._watches[layer] = LayerWatch(*self._wanted)
            watch.attach(layer)
        return layer

    @property
    def _stores(self) -> list[KVStore]:
        return [layer for layer in cache_of(self.kwargs).layers if isinstance(layer, KVStore)]

    def prefill(self, input_ids):
        outputs = super().prefill(input_ids)
        if self.plan.full and self._virtual:
            raise _refused("the cache holds other positions than the attention mask (virtual tokens)")
        return outputs

    @contextmanager
    def attention(self):
        watches = [self._watches[store] for store in self._stores] if self._watches else []
        with ExitStack() as stack:
            stack.enter_context(super().attention())
            if watches:
                stack.enter_context(reading_segments(self._model))
                stack.enter_context(watched_inputs(watches if self._wanted[1] else ()))
            if self._settings.by_head:
                stack.enter_context(last_hidden(self._model, self._take_hidden))
            calls = [watch.calls for watch in watches]
            yield
        if any(watch.calls != before + 1 for watch, before in zip(watches, calls, strict=True)):
            raise _refused("the model's attention does not read the keys that its cache returns")

    @contextmanager
    def aside(self):
        saved = [(watch, watch.saved()) for watch in self._watches.values()]
        try:
            yield
        finally:
            self._hidden = None
            for watch, state in saved:
                watch.restore(state)

    def _take_hidden(self, hidden) -> None:
        self._hidden = hidden

    def row_logits(self, outputs, device):
        logits = super().row_logits(outputs, device)
        if self._hidden is not None:
            self._keeper.note_hidden(self._hidden, self.slots)
            self._hidden = None
        return logits

    def _place(self, rows, source) -> None:
        super()._place(rows, source)
        for watch in self._watches.values():
            watch.reorder(self._on_device(source))

    def evict(self, input_ids, gone) -> None:
        stores = self._stores
        if self._call.thoughts is not None:
            self._call.thoughts.commit(input_ids[:, -1])
        self._prove(input_ids, stores)
        if not self._keeper.must_evict(stores):
            return
        watches = [self._watches.get(store) for store in stores]
        self._keeper.evict(stores, watches, self.slots, self._on_device(gone[self.slots.host]))
        if self.kwargs.get("attention_mask") is not None and not self._by_kind:
            self.kwargs["attention_mask"] = self._next_mask(stores)

    def _next_mask(self, stores) -> torch.Tensor:
        held = self._keeper.held_mask(self.slots, stores)
        assert held is not None  # whoever asks has a mask
        return torch.cat([held, held.new_ones(len(held), 1)], 1)

    def _prove(self, input_ids, stores) -> None:
        faults, kind = self._call.state.keep_faults, self._choice.kind
        if kind not in faults:
            if stores[0].held < LEAST:
                return
            faults[kind] = self._proof.fault(cache_of(self.kwargs), self.kwargs, self.slots.take(input_ids))
        if faults[kind] is not None:
            raise _refused(f"{type(self._model).__name__} {faults[kind]}")

    def prepared(self, inputs: dict) -> dict:
        if not (self._by_kind and self._keeper.evictions) or inputs.get("attention_mask") is None:
            return inputs
        held = self._next_mask(self._stores)
        masks = masks_by_kind(self._model, inputs, cache_of(self.kwargs), held, inputs["attention_mask"])
        return {**inputs, "attention_mask": masks}

    def keep_report(self) -> dict:
        keeper = self._keeper
        reason = "" if keeper.evictions else inactive(self._settings)
        return {"kv_held_peak": keeper.held_peak, "kv_evictions": keeper.evictions, "kv_keep_reason": reason}

    def close(self, sequences, return_cache: bool, surplus: bool):
        self._keeper.observe(self._stores, int(surplus))
        if not (return_cache and self._keeper.evictions):
            return super().close(sequences, return_cache, surplus)
        self._observe_bytes()
        kv_cache = cache_of(self.kwargs)
        name = next(name for name, value in self.kwargs.items() if value is kv_cache)
        arguments = (self._config, self._prompt_kwargs, name, self._prompt_length, sequences)
        release(kv_cache)
        # Full, since callers go on by its length; what was held is no witness: it saw less.
        return RebuiltCache(self._model, lambda model: rebuild(model, *arguments)), self._peak


def inactive(settings) -> str:
    """Why nothing was dropped."""
    if settings.everything:
        return f"keep={settings.keep} drops nothing"
    return f"no row held more than the budget of {settings.budget} positions before a forward"


def _refused(reason: str) -> ValueError:
    return ValueError(f"kv_keep cannot serve this call: {reason}. Change that, or leave kv_keep out")
