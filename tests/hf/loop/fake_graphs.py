"""CUDA graphs on a CPU: a replay runs what was captured again, and fails where a real one would go wrong."""

from contextlib import contextmanager

import torch
from recorders import RowLengths
from tiny_models import EOS, FAST, PAD, SLOW, left_padded, prompts

import adapt_kernels as ak
from adapt_kernels.hf.loop.step_record import StepRecord, difference

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH = 8


def call(lengths=None, new=24, widths=(8, 8), **more):
    """Arguments of a `generate` call that a graph can serve. lengths: new tokens after which each row ends."""
    ends = {} if lengths is None else {"stopping_criteria": [RowLengths(WIDTH, lengths)]}
    given = {"num_return_sequences": 3, "max_new_tokens": new, "eos_token_id": EOS, "suppress_tokens": [EOS], "seed": 5}
    given |= {"do_sample": True, "return_dict_in_generate": True, "kv_layout": "rows", "pad_token_id": PAD}
    return {**left_padded(prompts(2, WIDTH), widths), **given, **ends, **more}


class FakeGraphs:
    """`graph_device.CudaGraphs`; what happens is of the class, until `reset`.

    fails: the number of the capture that raises. captured: slots of every capture. alive: graphs not released.
    replays: (slots, record) of every replay.
    """

    fails: int | None
    captured: list
    alive: list
    replays: list
    capturing: bool

    @classmethod
    def reset(cls):
        cls.fails, cls.capturing, cls.captured, cls.alive, cls.replays = None, False, [], [], []

    def __init__(self, device):
        self.device = device

    @staticmethod
    def missing(device):
        return None

    @contextmanager
    def warming(self):
        assert not self.capturing
        yield

    def capture(self, run):
        cls = type(self)
        assert not cls.capturing, "two captures at a time"
        cls.capturing, record = True, StepRecord()
        try:
            if cls.fails == len(cls.captured):
                raise RuntimeError("operation not permitted when stream is capturing")
            with record:
                outputs = run()
        finally:
            cls.capturing = False
        cls.captured.append(len(outputs.logits))
        graph = FakeRun(run, record, outputs)
        cls.alive.append(graph)
        return graph


class FakeRun:
    """`graph_device.CapturedRun`: the same ops on the same addresses, or an AssertionError."""

    def __init__(self, run, record, outputs):
        self._run, self._record, self.outputs = run, record, outputs

    def replay(self):
        assert self in FakeGraphs.alive, "a graph was replayed after its release"
        assert not FakeGraphs.capturing
        again = StepRecord()
        with again:
            found = self._run()
        fault = difference(self._record, again)
        assert fault is None, fault
        for name, value in found.items():
            if torch.is_tensor(value):
                self.outputs[name].copy_(value)
        FakeGraphs.replays.append((len(found.logits), again))

    def release(self):
        self.outputs = None
        FakeGraphs.alive.remove(self)
