"""Which rows of a call are computed, in which slot of the batch, on which KV."""

from contextlib import contextmanager

import torch
from transformers.cache_utils import DynamicCache

from adapt_kernels.hf.compat import CACHE_NAMES
from adapt_kernels.hf.kv.allotment import Allotment
from adapt_kernels.hf.kv.cached import cache_of, cached_tokens, given_width, training_state
from adapt_kernels.hf.kv.layouts import LayoutChoice, RowsLayout
from adapt_kernels.hf.kv.prompts import first_rows, select_rows
from adapt_kernels.hf.kv.random_draws import drawn_from, random_states
from adapt_kernels.hf.kv.rebuilt_cache import RebuiltCache, Witness, rebuild_as_witnessed
from adapt_kernels.hf.kv.segments import (
    KVLedger,
    SegmentedLayer,
    bytes_per_position,
    give_back,
    other_bytes,
    release,
    reorder,
    segment,
)
from adapt_kernels.hf.kv.shared_prompts import SharedPromptLayer
from adapt_kernels.hf.kv.whole_batch import WholeBatch
from adapt_kernels.hf.model_hooks import ModelHooks
from adapt_kernels.hf.outputs import asked_outputs, cache_bytes
from adapt_kernels.hf.plan import Plan
from adapt_kernels.ops.branch import branch

NO_CACHE = "the model's output carries no cache"


class BranchedBatch(WholeBatch):
    """Plan "full": one prefill per distinct prompt, slots ordered by mode, KV in segments, finished rows leave."""

    def __init__(self, model, config, input_ids, model_kwargs, plan: Plan, call, most_new: int):
        super().__init__(model, config, input_ids, model_kwargs, plan)
        self._prompt_length, self._compact_at = input_ids.shape[1], call.request.compact_at
        # What every row shows of every step is computed by itself, to the end.
        self._shows = bool(asked_outputs(config))
        self._prompts = torch.arange(self._rows) if self._shows else self.prompts
        self._first = first_rows(self._prompts)
        self._prompt_kwargs = {n: v for n, v in model_kwargs.items() if n not in CACHE_NAMES}
        self._call, self._most_new, self._ledger, self._peak = call, most_new, KVLedger(), 0
        self._hooks = ModelHooks(model)
        self._shared, self._expanded = len(self._first) < self._rows, False
        self._virtual = False  # whether the cache holds more positions than the mask
        self._others = False  # whether the cache has layers that are not segmented
        self._device = input_ids.device
        mask = model_kwargs.get("attention_mask")
        faults = call.state.reading_faults
        self._choice = LayoutChoice(call.request.layout, model, faults, self._first, self._rows, mask, self._device)
        self.plan = self._choice.at_first(plan)

    def prefill(self, input_ids):
        if self._shared:
            self.kwargs = select_rows(self.kwargs, self._first)
            input_ids = input_ids[self._first.to(self._device)]
        generators = random_states(self._device) if self._model.training else None
        outputs = None
        with self._choice.watching(self.plan, cache_of(self.kwargs)) as marks, self._hooks.first():
            outputs = super().prefill(input_ids)
        if self._hooks.changes:
            if not torch.is_inference_mode_enabled():
                self._call.state.changing_hooks |= self._hooks.handles
            return self._declined(self._hooks.reason(), outputs)
        if generators is not None and drawn_from(generators, self._device):
            return self._declined("the model is in training mode and draws random numbers for the whole batch", outputs)
        cache, returned = cache_of(self.kwargs), cache_of(outputs)
        if returned not in (None, cache) or not cache_bytes(cache):
            # The model may keep its states in fields of its output that nobody can reorder.
            self._call.state.no_cache = training_state(self._model)
            return self._declined(NO_CACHE, outputs)
        self._virtual = cached_tokens(self.kwargs) not in (0, given_width(input_ids, self._prompt_kwargs))
        if self._virtual:
            self.plan = self._choice.without_virtual_tokens(self.plan)
        self.plan, self._layout = self._choice.choose(self.plan, marks, cache, self._prompt_length, self._compact_at)
        limits = (self._layout.kept_prompt, self._most_new - 1)
        self._allotment = Allotment(self._call.modes, self._call.state.recent_lengths, *limits)
        self._allotment.check_memory(self._call.rows.forced_mode, bytes_per_position(cache), self._device)
        segment(cache, self._layer)
        self._others = not all(isinstance(layer, SegmentedLayer) for layer in cache.layers)
        return outputs

    def _declined(self, reason: str, outputs):
        """The batch cannot go on, and its cache cannot be cropped."""
        self.plan = self.plan.keeping_the_batch(reason).without_appending(reason)
        return outputs

    def restart(self) -> dict:
        """After it declined: the model inputs that it was given, with an empty cache."""
        name = next(name for name in CACHE_NAMES if self.kwargs.get(name) is not None)
        config = self._model.config.get_text_config(decoder=True)
        return {**self._prompt_kwargs, name: DynamicCache(config=config)}

    def _layer(self, plain):
        return self._layout.layer(plain, self._ledger, self._allotment)

    @contextmanager
    def attention(self):
        with self._layout.attention(), self._hooks.later():
            yield

    def settle(self) -> None:
        """A model that turns out not to read shared prompts rightly goes on with rows of its own."""
        if isinstance(self._layout, RowsLayout):
            return  # nothing to prove, at every step
        cache = cache_of(self.kwargs)
        plan = self._choice.settle(self.plan, self._layout, cache)
        if plan is not self.plan:
            self.plan, self._layout = plan, RowsLayout(self._prompt_length)
            self._allotment = self._allotment.behind(self._layout.kept_prompt)
            cache.layers = [self._layer(x.detach()) if isinstance(x, SharedPromptLayer) else x for x in cache.layers]

    def row_logits(self, outputs, device):
        self.settle()
        logits = super().row_logits(outputs, device)
        return logits[self._on_device(self._prompts)] if self._shared and not self._expanded else logits

    @property
    def _leave(self) -> bool:
        """Whether finished rows leave: some models' KV is not to be had again for a cache that is returned."""
        if self._shows:
            return False
        stay = self._virtual or self._call.state.rows_stay
        return not (stay and self._config.return_dict_in_generate)

    def of_rows(self, per_slot):
        if self._shared and not self._expanded:
            return per_slot[self._on_device(self._prompts)]
        return self.slots.spread(per_slot, 0)

    def cached_slots(self, per_slot):
        return per_slot if self._expanded else per_slot[self._on_device(self._first)]

    def of_cached_slots(self, per_cached):
        return per_cached if self._expanded else per_cached[self._on_device(self._prompts)]

    def place_prompts(self) -> None:
        if not self._expanded:
            self._layout.place(torch.arange(len(self._first)), self.cache)

    def expand(self, modes) -> bool:
        if self._expanded:
            return False
        self._branch(modes, torch.zeros(self._rows, dtype=torch.bool))
        return True

    def advance(self, gone, modes, at_mode: bool, at_once: bool = False) -> bool:
        """Rows are made of prompts at the first step, ordered at the mode step, compacted afterwards where it pays."""
        if self._others:
            # They grow by themselves; the ledger keeps its own peak until it is asked.
            self._observe_bytes()
        if not self._expanded or at_mode:
            changed = True
            self._branch(modes, gone)
            self._observe_bytes()
        else:
            # The last row leaves with the end of the call.
            changed = len(self.slots) > 1 and self._compact(gone, at_once)
        if at_once and changed:
            give_back(cache_of(self.kwargs))
        self.row_steps += len(self.slots)
        return changed

    def close(self, sequences, return_cache: bool, surplus: bool):
        self._observe_bytes()
        cache = cache_of(self.kwargs)
        if not return_cache:
            release(cache)
            return None, self._peak
        if len(self.slots) == self._rows and not surplus:
            self._place(torch.arange(self._rows), self.slots.host.argsort() if self._expanded else self._prompts)
            cache.layers = [x.detach() if isinstance(x, SegmentedLayer) else x for x in cache.layers]
            return cache, self._peak
        name = next(name for name in CACHE_NAMES if self.kwargs.get(name) is cache)
        arguments = (self._config, self._prompt_kwargs, name, self._prompt_length, sequences)
        mask = self._prompt_kwargs.get("attention_mask")
        length = cached_tokens(self.kwargs) - surplus
        witness = Witness.of(cache, self.slots.row(0), mask, length, surplus, self._call.state.keep_rows)
        release(cache)
        return RebuiltCache(self._model, lambda model: rebuild_as_witnessed(model, witness, *arguments)), self._peak

    def abandon(self) -> None:
        if (cache := cache_of(self.kwargs)) is not None:
            release(cache)

    def _branch(self, modes, gone) -> None:
        """Longest allotment first, finished rows out."""
        gone = gone & self._leave
        rows, device = self.slots.host, modes.device
        vectors = (modes[rows.to(device)], self._prompts[rows].to(device), self._allotment.kv_tokens.to(device))
        order = branch(*vectors, len(self._first), ~gone[rows].to(device)).order.cpu()
        order = order[: int((~gone[rows]).sum())]
        self._allotment.reserve(modes.cpu()[rows[order]].unique().tolist())
        self._place(rows[order], order if self._expanded else self._prompts[order])
        self._expanded = True

    def _compact(self, gone, at_once: bool = False) -> bool:
        # NumPy: this runs at every step.
        if not self._leave:
            return False
        rows, slots = self.slots.host, len(self.slots)
        living = slots - int(gone.numpy()[rows.numpy()].sum())
        if living == slots or not (at_once or living <= self._compact_at * slots or self._is_full()):
            return False
        staying, index = ~gone[rows], torch.arange(living)
        # Holes are filled from the tail, so that in-place segments copy as few rows as possible.
        index[~staying[:living]] = living + staying[living:].nonzero()[:, 0]
        self._place(rows[index], index)
        return True

    def _place(self, rows, source) -> None:
        """rows: the row of each new slot; source: the old slot, or the prompt, that it comes from."""
        old_size = len(self.slots) if self._expanded else len(self._first)
        if not torch.equal(source, torch.arange(old_size)):
            reorder(cache_of(self.kwargs), source, self._device)
            self.kwargs = select_rows(self.kwargs, self._on_device(source))
        self.slots = self.slots.holding(rows)
        self._layout.place(self._prompts[rows], cache_of(self.kwargs))

    def _on_device(self, index) -> torch.Tensor:
        return index.to(self._device, non_blocking=True)

    def _is_full(self) -> bool:
        """Whether the next token makes the segments grow: the last moment to let rows leave for free."""
        return any(x.get_seq_length() == x.capacity for x in self.cache.layers if isinstance(x, SegmentedLayer))

    def _observe_bytes(self) -> None:
        self._peak = max(self._peak, self._ledger.recent_peak() + other_bytes(cache_of(self.kwargs)))
