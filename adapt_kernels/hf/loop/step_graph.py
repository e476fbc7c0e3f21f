"""The forward of a decode step as a CUDA graph: captured once its shape has come twice, replayed until rows leave their
bucket of slots or the segments grow.

It reads ids, positions, mask and length at fixed addresses, and KV at its capacity. What chooses tokens and ends rows
goes on step by step, so programs, processors, probes and paths see no difference but in the last bits of the logits.
"""

from typing import Any

import torch

from adapt_kernels.hf.kv.cached import cache_of
from adapt_kernels.hf.kv.fixed_rows import FixedRows
from adapt_kernels.hf.kv.segments import SegmentedLayer
from adapt_kernels.hf.loop.graph_device import CapturedRun, CudaGraphs
from adapt_kernels.hf.loop.step_record import StepRecord, difference
from adapt_kernels.hf.plan import ROWS

_GRAPHS: Any = CudaGraphs  # what tests put another in the place of
_MASK = "attention_mask"


def refused_graph(model, call, plan, device) -> None:
    """Raises ValueError where `cuda_graph=True` cannot be honoured, as far as that is known before the prefill."""
    if call.request.cuda_graph is True and (reason := _call_reason(model, call, plan, device)) is not None:
        raise _refusal(reason)


def step_graph(model, call, batch, device) -> "StepGraph | NoGraph":
    """How the forwards of a call's steps are run, once its prefill has shown its batch."""
    asked = call.request.cuda_graph
    if asked is False:
        return NoGraph()
    reason = _call_reason(model, call, batch.plan, device) or _batch_reason(batch, device)
    if reason is None:
        return StepGraph(batch.cache.layers, device, required=asked is True)
    if asked is True:
        raise _refusal(reason)
    return NoGraph(reason)


def _refusal(reason: str) -> ValueError:
    return ValueError(f"cuda_graph=True cannot serve this call: {reason}. Change that, or leave cuda_graph out")


def _call_reason(model, call, plan, device) -> str | None:
    if not plan.full:
        return f"plan {plan.name!r}: {plan.reason}"
    if (missing := _GRAPHS.missing(device)) is not None:
        return missing
    if call.keep is not None:
        return "kv_keep drops positions, and a graph reads all of them"
    if call.paths is not None and call.paths.own_function:
        return "paths scores by a function, which reads hidden states that a replay does not show"
    if any(parameter.device != device for parameter in model.parameters()):
        return f"some of the model's weights are not on {device}"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a forward hook on {name or 'the model'} would not be called by a replay"
    return None


def _batch_reason(batch, device) -> str | None:
    if batch.plan.layout != ROWS:
        return f"prompts are shared between rows, and their segments read at their length: kv_layout={ROWS!r} has none"
    layers = batch.cache.layers
    other = [type(layer).__name__ for layer in layers if not isinstance(layer, SegmentedLayer)]
    if other or not layers:
        return f"cache layers of type {other[0]} keep no fixed place" if other else "the cache has no layers"
    if any(layer.device != device for layer in layers):
        return f"some of the KV cache is not on {device}"
    return None


class NoGraph:
    """`StepGraph` of a call whose forwards run as they are."""

    def __init__(self, reason: str | None = None):
        """reason: why, None where nobody asks."""
        self.stats: dict = {} if reason is None else {"graph_captures": 0, "graph_replays": 0, "graph_reason": reason}

    def around(self, forward):
        return forward

    def close(self) -> None:
        """Nothing was captured."""


class StepGraph:
    """Runs the forwards of one call's steps. required: what stands in the way raises RuntimeError."""

    def __init__(self, layers: list[SegmentedLayer], device, required: bool):
        self._layers, self._required = layers, required
        self._graphs = _GRAPHS(device)
        self._forward: Any = None
        self._captured: _Captured | None = None
        self._latest: object = None  # the shape of the latest forward
        self._reason, self._replays, self._captures = "", 0, 0

    @property
    def stats(self) -> dict:
        """Fields of `GenerateStats`."""
        never = "" if self._replays else "the call ended before a step's shape had come three times"
        counts = {"graph_captures": self._captures, "graph_replays": self._replays}
        return {**counts, "graph_reason": self._reason or never}

    def around(self, forward):
        """In the place of a step's forward."""
        self._forward = forward
        return self

    def close(self) -> None:
        """The call has ended, or failed."""
        if self._captured is not None:
            self._captured.run.release()
            self._captured = None

    def __call__(self, **inputs):
        if self._reason:
            return self._forward(**inputs)
        if self._captured is not None and self._has_room and self._captured.shape == self._shape(inputs):
            self._replays += 1
            return self._captured(inputs)
        self.close()  # before the segments grow, which may need its memory
        outputs = self._forward(**inputs)
        shape, before = self._shape(inputs), self._latest
        if shape == before and self._has_room:
            self._capture(inputs, outputs, shape)
        self._latest = shape
        return outputs

    @property
    def _has_room(self) -> bool:
        return self._layers[0].get_seq_length() < self._layers[0].capacity

    def _shape(self, inputs: dict) -> tuple:
        """What a graph is good for."""
        slots = len(inputs["input_ids"])
        bucket = min(1 << (slots - 1).bit_length(), self._layers[0].slots_held)
        tensors = {name: value.shape[1:] for name, value in inputs.items() if torch.is_tensor(value) and name != _MASK}
        others = {name: value for name, value in inputs.items() if not torch.is_tensor(value)}
        return bucket, [layer.rebuilt for layer in self._layers], tensors, others

    def _capture(self, inputs: dict, outputs, shape: tuple) -> None:
        try:
            self._captured = _capture(self._graphs, self._forward, self._layers, inputs, outputs, shape)
        except Exception as error:
            # Whatever a model's code raises there: it has run without a graph.
            self._reason = f"the model's forward cannot be captured: {error}"
            if self._required:
                raise RuntimeError(f"cuda_graph=True: {self._reason}; leave cuda_graph out") from error
            return
        self._captures += 1


class _Captured:
    """A forward in a graph, and what it reads and writes."""

    def __init__(self, run: CapturedRun, inputs: "_FixedInputs", rows: FixedRows, shape: tuple):
        self.run, self.shape = run, shape
        self._inputs, self._rows = inputs, rows

    def __call__(self, inputs: dict):
        self._inputs.load(inputs)
        self.run.replay()
        self._rows.count()
        return _of_slots(self.run.outputs, len(inputs["input_ids"]))


def _capture(graphs, forward, layers, inputs: dict, outputs, shape: tuple) -> _Captured:
    """The step that has just been run, as a graph, once it has proved to give the same logits by the same ops.

    Host syncs: one. Leaves the KV as it was.
    """
    rows = FixedRows(layers, shape[0])
    fixed = _FixedInputs(inputs, rows, shape[0])
    fixed.load(inputs, written=True)
    first, second = StepRecord(), StepRecord()

    def run():
        with rows.shown():
            return forward(**fixed.inputs)

    with rows.last_kept():
        rows.poison()
        with graphs.warming(), first:
            found = run()
        if not _same(_of_slots(found, len(inputs["input_ids"])).logits, outputs.logits):
            raise RuntimeError("over KV of a fixed size, behind a mask, it gives other logits")
        rows.clear()
        del found
        with graphs.warming(), second:
            run()
        if (fault := difference(first, second)) is not None:
            raise RuntimeError(f"two runs are not the same: {fault}")
        return _Captured(graphs.capture(run), fixed, rows, shape)


def _same(found, wanted) -> bool:
    """Up to rounding, for which a sum over masked positions is another one."""
    tolerance = max(1e-4, 8 * torch.finfo(wanted.dtype).eps) * wanted.abs().max()
    return bool(((found.float() - wanted.float()).abs() <= tolerance).all())


def _of_slots(outputs, slots: int):
    """The outputs of the slots that hold rows."""
    return type(outputs)(**{**outputs, "logits": outputs.logits[:slots]})


class _FixedInputs:
    """The model inputs of a step at addresses that stay. Raises RuntimeError for tensors that it does not know."""

    def __init__(self, inputs: dict, rows: FixedRows, slots: int):
        self._rows, self.inputs = rows, dict(inputs)
        for name in ("input_ids", "position_ids"):
            if (given := inputs.get(name)) is not None:
                count = slots if len(given) == len(inputs["input_ids"]) else len(given)
                self.inputs[name] = given.new_zeros(count, *given.shape[1:])
        mask = inputs.get(_MASK)
        like = inputs["input_ids"] if mask is None else mask
        self.inputs[_MASK] = like.new_zeros(slots, rows.capacity)
        # Slots without a row read something, too.
        self.inputs[_MASK][:, 0] = 1
        known = ("input_ids", "position_ids", _MASK)
        others = [name for name, value in inputs.items() if torch.is_tensor(value) and name not in known]
        others += [name for name in known if inputs.get(name) is not None and inputs[name].ndim != 2]
        if others:
            raise RuntimeError(f"model input {others[0]!r} is not known to have one number per row and position")

    def load(self, inputs: dict, written: bool = False) -> None:
        """A step's inputs; written: its position is in the cache already."""
        length = cache_of(inputs).get_seq_length() - written
        self._rows.position.fill_(length)
        for name in ("input_ids", "position_ids"):
            if (given := inputs.get(name)) is not None:
                self.inputs[name][: len(given)].copy_(given)
        mask, slots = inputs.get(_MASK), len(inputs["input_ids"])
        seen = self.inputs[_MASK][:slots, : length + 1]
        if mask is None:
            seen.fill_(1)
        elif mask.shape == seen.shape:
            seen.copy_(mask)
        else:
            raise RuntimeError(f"the mask has {mask.shape[1]} positions, and the cache {length + 1}")
