"""What tests plug into `generate` to watch it or to end rows."""

from contextlib import contextmanager

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import adapt_kernels as ak


@contextmanager
def forward_calls(model):
    """Yields a list that gets one entry per forward call of the model."""
    calls = []
    hook = ak.row_independent(lambda module, args, kwargs: calls.append(kwargs))
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


class RecordingStreamer(BaseStreamer):
    """Keeps every call; unlike TextStreamer it takes any number of rows."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value.dtype, value.tolist()))

    def end(self):
        self.calls.append(("end",))


class CallbackStreamer(BaseStreamer):
    """Calls a function on each put after the prompt."""

    def __init__(self, function):
        self._function, self._seen_prompt = function, False

    def put(self, value):
        if self._seen_prompt:
            self._function()
        self._seen_prompt = True

    def end(self):
        pass


class RowLengths(StoppingCriteria):
    """Row i ends after `lengths[i]` new tokens."""

    def __init__(self, prompt_length: int, lengths):
        self._ends = torch.tensor(lengths) + prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self._ends.to(input_ids.device)


class RaisingProcessor(LogitsProcessor):
    """Raises at the given step."""

    def __init__(self, step: int):
        self._left = step

    def __call__(self, input_ids, scores):
        if self._left == 0:
            raise RuntimeError("a processor failed")
        self._left -= 1
        return scores


class RaisingCriterion(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise RuntimeError("a criterion failed")


class Wishes(LogitsProcessor):
    """What the model would write: row i's tokens are `wishes[i]`, one a step, whatever its logits say."""

    def __init__(self, prompt_length: int, wishes):
        self._prompt_length, self._wishes = prompt_length, wishes

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self._prompt_length
        wished = torch.tensor([[row[min(step, len(row) - 1)]] for row in self._wishes])
        return torch.zeros_like(scores).scatter(1, wished, 100.0)
