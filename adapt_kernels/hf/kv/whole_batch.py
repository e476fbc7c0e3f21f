"""The batch of plan "sample_only", and the interface that the decode loop knows of any batch."""

from contextlib import nullcontext
from functools import cached_property

import torch

from adapt_kernels.hf.kv.cached import cache_of, cached_tokens, prefill_width
from adapt_kernels.hf.kv.prompts import prompts_of
from adapt_kernels.hf.outputs import cache_bytes
from adapt_kernels.hf.plan import Plan
from adapt_kernels.program.slots import Slots


class WholeBatch:
    """Plan "sample_only": every row in Hugging Face's order and cache, to the end.

    slots: which rows are decoded now. plan: of the call; another one after a prefill that showed that this batch cannot
    go on, see `BranchedBatch`.
    """

    def __init__(self, model, config, input_ids, model_kwargs, plan: Plan):
        self.plan = plan
        self._model, self._config, self.kwargs, self._rows = model, config, model_kwargs, len(input_ids)
        self.slots = Slots(self._rows, input_ids.device)
        self.row_steps = self.prefill_tokens = 0
        self._inputs = input_ids, model_kwargs

    @cached_property
    def prompts(self) -> torch.Tensor:
        """[rows] int64 on the CPU: the prompt of each row. Reads the inputs."""
        return prompts_of(*self._inputs, self._config.num_return_sequences or 1)

    @property
    def cache(self):
        return cache_of(self.kwargs)

    def prefill(self, input_ids):
        """The model's outputs for the prompts."""
        past = cached_tokens(self.kwargs)
        outputs = self._model._prefill(input_ids, self._config, self.kwargs, is_first_iteration=True)
        width = prefill_width(input_ids, self.kwargs, cached_tokens(outputs) - past)
        self.prefill_tokens = len(input_ids) * width
        return outputs

    def row_logits(self, outputs, device):
        """[slots, V]: the logits of the last position."""
        return outputs.logits[:, -1].to(device)

    def of_rows(self, per_slot):
        """[rows, ...] from what a forward gave [slots, ...]; zeros for rows that have left."""
        return per_slot

    def expand(self, modes) -> bool:
        """Make rows of the prompts now, if they are not. True if slots changed."""
        return False

    def cached_slots(self, per_slot):
        """The entries of what the cache holds: of every prompt's first row before the first step, else as they are."""
        return per_slot

    def of_cached_slots(self, per_cached):
        """Back to slots."""
        return per_cached

    def place_prompts(self) -> None:
        """Before a forward over what the cache holds ahead of the first step."""

    def settle(self) -> None:
        """After a forward."""

    def attention(self):
        """A context in which the model's attention reads this batch's KV."""
        return nullcontext()

    def evict(self, input_ids, gone) -> None:
        """After `advance`: let rows drop KV; gone [rows] bool on the CPU."""

    def aside(self):
        """A context for forwards that are no steps of the rows."""
        return nullcontext()

    def prepared(self, inputs: dict) -> dict:
        return inputs

    def keep_report(self) -> dict:
        return {}  # `GenerateStats` of `kv_keep`

    def abandon(self) -> None:
        """The call failed: give back what it holds."""

    def advance(self, gone, modes, at_mode: bool, at_once: bool = False) -> bool:
        """Before the next forward: let rows leave, gone [rows] bool on the CPU. True if slots changed; at_mode: modes
        [rows] were just drawn; at_once: rows leave whatever compact_at, and give their KV back."""
        self.row_steps += self._rows
        return False

    def close(self, sequences, return_cache: bool, surplus: bool):
        """(cache to return or None, its peak bytes). surplus: it holds one position more than `sequences` needs."""
        cache = cache_of(self.kwargs)
        return cache, cache_bytes(cache)
