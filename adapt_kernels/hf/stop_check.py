"""Tells the host which rows have ended, on a GPU without waiting for it."""

import torch
from transformers.generation import stopping_criteria as criteria

# Their outcome for a row that has ended does not change, and nobody sees that they are asked once more.
_SILENT = (criteria.MaxLengthCriteria, criteria.EosTokenCriteria, criteria.StopStringCriteria)


class StopCheck:
    """After each step: `put`, then `done` and `gone`.

    late: the host reads the flags of the step before, which have arrived while this step was queued. Rows then leave
    one step later, and one step is computed that nobody needs: all its tokens are padding (`surplus`). Not late: one
    host sync per step.
    """

    def __init__(self, rows: int, most_new: int, late: bool):
        self._most_new, self._late, self._step = most_new, late, 0
        flags = torch.zeros(2, rows, dtype=torch.bool)
        flags[0] = True
        self._latest = [(flags, None)]  # ([alive, gone], the event of their arrival), of the last two steps

    def put(self, ends, step: int) -> None:
        """Take the flags of `RowEnds` after `step` new tokens."""
        flags, arrival = torch.stack([ends.alive, ends.gone]), None
        if flags.device.type == "cuda" and self._late:
            host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
            flags = host
        self._step, self._latest = step, [self._latest[-1], (flags.cpu(), arrival)]

    @property
    def gone(self) -> torch.Tensor:
        """[rows] bool on the CPU: rows known to show nothing but padding from now on."""
        return self._known()[1]

    @property
    def done(self) -> bool:
        """Whether no row needs another step."""
        return self._all_ended() or (self._late and self._step >= self._most_new)

    @property
    def surplus(self) -> bool:
        """Whether the latest step was one too many."""
        return self._late and self._all_ended()

    def _all_ended(self) -> bool:
        return not self._known()[0].numpy().any()

    def _known(self):
        flags, arrival = self._latest[0 if self._late else -1]
        if arrival is not None:
            arrival.synchronize()
        return flags


def may_be_late(stopping_criteria, config, streamer, device) -> bool:
    """Whether one more step than Hugging Face's loop goes unseen, and a GPU makes it worth while."""
    silent = all(type(criterion) in _SILENT for criterion in stopping_criteria)
    return device.type == "cuda" and silent and streamer is None and config._pad_token_tensor is not None
