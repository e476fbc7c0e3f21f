"""`ModeProcessor`: one logits processor for both of vLLM's model runners."""

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as OlderProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from adapt_kernels.serving.control import HostTokens, Placed, RowControl
from adapt_kernels.serving.drafts import DraftedRows, step_drafted
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.settings import ROW_KEY, check_names, parse
from adapt_kernels.vllm.entrance import is_on
from adapt_kernels.vllm.model import drafts, served_model

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as NewerProcessor
except ImportError:  # a vLLM that has the older runner only

    class NewerProcessor:  # type: ignore[no-redef]
        """Nothing to be."""


_FIRST: dict[int, weakref.ref] = {}  # the processor that acts, by what all of one engine share


class ModeProcessor(OlderProcessor, NewerProcessor):
    """Draws modes and writes what programs write, row by row, for the requests that ask; the others cost nothing.

    The older runner gives (config, device, pinned) and tells rows by `update_state`; the newer one (config, its request
    state) and `add_request`. Named by the entry point and by --logits-processors there are two: the second is inert.
    """

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raises ValueError for settings that are misspelt, or that nobody here would check or honour."""
        if check_names(sampling_params.extra_args) and not is_on():
            raise ValueError(
                f"{', '.join(sampling_params.extra_args)}: the vLLM plugin 'adapt_kernels' is off: name it in"
                " VLLM_PLUGINS, or unset that; it knows vLLM 0.32 and 0.33"
            )

    def __init__(self, vllm_config, second, third=None):
        self._requests: Any = second if hasattr(second, "prompt_len") else None
        shared = vllm_config if self._requests is None else second.all_token_ids
        first = _FIRST.get(id(shared), lambda: None)()
        self.inert = first is not None and first._shared is shared
        if not self.inert:
            _FIRST[id(shared)] = weakref.ref(self)
        self._shared, self._config, self._added = shared, vllm_config, 0
        self._device = second if self._requests is None else second.device
        self._drafts, self._least, self._entering = drafts(vllm_config), {}, {}
        self._control: RowControl | None = None

    def is_argmax_invariant(self) -> bool:
        """A mode that is drawn is not the likeliest one."""
        return False

    def _row(self, params, prompt: Sequence[int], generated: Sequence[int]) -> Row | None:
        """The row of a request, None where it asks for nothing."""
        given = params.extra_args or {}
        if self.inert or not (ROW_KEY in given or check_names(given)):
            return None
        served = self._controlling().served
        settings = parse({name: value for name, value in given.items() if name != ROW_KEY}, served)
        self._added += 1
        seed = given.get(ROW_KEY, self._unkeyed())
        return Row(settings, prompt, generated, seed, params.temperature, params.max_tokens or 2**30)

    def _controlling(self) -> RowControl:
        """Made for the first request that asks for something."""
        if self._control is None:
            size = self._config.model_config.get_vocab_size()
            self._control = RowControl(served_model(self._config), size, self._device)
        return self._control

    def _unkeyed(self) -> int:
        """A seed for a request that came past the guard: equal on the ranks of one replica, and of no other."""
        rank = self._config.parallel_config.data_parallel_rank
        name = f"{self._config.instance_id}:{rank}:{self._added}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "little", signed=True)

    # the older runner

    def update_state(self, batch_update) -> None:
        """Rows that left, came and moved since the last step, in this order."""
        if batch_update is None or self.inert:
            return
        if self._control is not None:
            for slot in batch_update.removed:
                self._control.drop(slot)
        for slot, params, prompt, generated in batch_update.added:
            row = self._row(params, prompt or (), generated)
            if row is not None:
                self._controlling().add(slot, row)
            elif self._control is not None:
                self._control.drop(slot)
        if self._control is not None:
            for source, target, direction in batch_update.moved:
                change = self._control.swap if direction == MoveDirectionality.SWAP else self._control.move
                change(source, target)

    # the newer runner

    def add_request(self, slot: int, params) -> bool:
        """A row enters a slot; its tokens are read before the next step."""
        if self._control is not None:
            self._control.drop(slot)
        self._entering.pop(slot, None)
        given = params.extra_args or {}
        if self.inert or not (ROW_KEY in given or check_names(given)):
            return False
        self._entering[slot] = (params, _staged(self._requests.all_token_ids, slot))
        return True

    def apply_staged_writes(self) -> None:
        """Rows that entered since the last step begin."""
        for slot, (params, tokens) in self._entering.items():
            state = self._requests
            held = int(state.prefill_len.np[slot])
            if tokens is None:  # read back from the device
                tokens = state.all_token_ids.gpu[slot, :held].tolist()
            prompt = int(state.prompt_len.np[slot])
            row = self._row(params, tokens[:prompt], tokens[prompt:held])
            if row is not None:
                self._controlling().add(slot, row)
                self._least[slot] = held - prompt
        self._entering.clear()

    # both

    def apply(self, logits: torch.Tensor, ctx=None) -> torch.Tensor:
        """Edit the logits of the rows that asked. No host sync on a GPU."""
        if self._control is None or not len(self._control):
            return logits
        if ctx is None:
            return self._control.step(logits, HostTokens(self._control, [(n, n) for n in range(len(logits))]))
        batch = _DeviceTokens(self._control, self._requests, ctx, self._least if self._drafts else None)
        if not self._drafts:
            return self._control.step(logits, batch)
        rows = DraftedRows(ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids)
        began = [slot for slot, most in zip(batch.slots, batch.most, strict=True) if most >= self._control[slot].said]
        logits = step_drafted(self._control, logits, batch, rows, self._requests.max_num_reqs, self._drafts)
        for slot in began:
            self._least[slot] += 1
        return logits


class _DeviceTokens:
    """The `Batch` of the newer runner: tokens and lengths on the device, upper bounds of lengths on the host."""

    def __init__(self, control: RowControl, requests, ctx, least: dict[int, int] | None):
        """least: tokens that each slot has generated at the least; None without speculation, where bounds are exact."""
        self._control, self._requests, self._ctx = control, requests, ctx
        listed = ctx.idx_mapping_np.tolist()
        steered = [(number, slot) for number, slot in enumerate(listed) if slot in control]
        self.rows, self.slots = [number for number, _ in steered], [slot for _, slot in steered]
        self.most = [
            int(ctx.seq_lens_upper_bound_np[number]) - int(requests.prompt_len.np[slot]) for number, slot in steered
        ]
        self.least = self.most if least is None else [least[slot] for slot in self.slots]
        self._drafted = least is not None

    def generated(self, which: Sequence[int]) -> torch.Tensor:
        """See `Batch`."""
        slots, ctx = self._control.ids([self.slots[n] for n in which]), self._ctx
        if self._drafted:
            own, local = ctx.expanded_idx_mapping.long(), ctx.expanded_local_pos.long()
            every = torch.arange(len(own), device=own.device)
            first = own.new_zeros(self._requests.max_num_reqs).scatter(0, own, every - local)[slots]
        else:
            first = self._control.ids([self.rows[n] for n in which])
        return (ctx.pos[first] + 1 - self._requests.prompt_len.gpu[slots]).long()

    def tokens(self, which, placed: Sequence[Placed], round: int, position) -> torch.Tensor:
        """See `Batch`."""
        slots, all_ids = self._control.ids([self.slots[n] for n in which]), self._requests.all_token_ids.gpu
        column = (self._requests.prompt_len.gpu[slots] + position).clamp(0, all_ids.shape[1] - 1)
        return all_ids[slots, column.long()].long()


def _staged(tensor, slot: int) -> list[int] | None:
    """The tokens that the runner has put aside for this slot and not yet written; None where they are not on the host.

    They are private to vLLM's buffer, and spare a read from the device.
    """
    try:
        index = len(tensor._staged_write_indices) - 1 - tensor._staged_write_indices[::-1].index(slot)
        begin = tensor._staged_write_cu_lens[index - 1] if index else 0
        whole = tensor._staged_write_starts[index] == 0
        return list(tensor._staged_write_contents[begin : tensor._staged_write_cu_lens[index]]) if whole else None
    except (AttributeError, ValueError, IndexError):
        return None
