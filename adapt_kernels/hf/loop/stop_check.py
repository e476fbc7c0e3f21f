"""Tells the host which rows have ended, on a GPU without waiting for it."""

import torch
from transformers.generation import stopping_criteria as criteria

# Their outcome for a row that has ended does not change, and nobody sees that they are asked once more.
_SILENT = (criteria.MaxLengthCriteria, criteria.EosTokenCriteria, criteria.StopStringCriteria)


class StopCheck:
    """After each step: `put`, then `check_lost`, `done` and `gone`.

    late: the host reads the flags of the step before, which have arrived while this step was queued. Rows then leave
    one step later, and one step is computed that nobody needs: all its tokens are padding (`surplus`). Not late: one
    host sync per step.
    """

    def __init__(self, rows: int, most_new: int, late: bool):
        self._most_new, self._late, self._step = most_new, late, 0
        flags = torch.zeros(3, rows, dtype=torch.bool)
        flags[0] = True
        # ([alive, gone, lost], the event of their arrival), of the last two steps
        self._latest: list[tuple[torch.Tensor, torch.cuda.Event | None]] = [(flags, None)]

    def put(self, ends, step: int) -> None:
        """Take the flags of `RowEnds` after `step` new tokens."""
        flags, arrival = torch.stack([ends.alive, ends.gone, ends.lost]), None
        if flags.device.type == "cuda" and self._late:
            host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
            flags = host
        self._step, self._latest = step, [self._latest[-1], (flags.cpu(), arrival)]

    def catch_up(self) -> None:
        """The latest step's flags count at once; one host sync. Where all rows have ended nothing is left to leave."""
        if self._arrived(-1)[0].numpy().any():
            self._latest = [self._latest[-1]] * 2

    @property
    def gone(self) -> torch.Tensor:
        """[rows] bool on the CPU: rows known to show nothing but padding from now on."""
        return self._known()[1]

    def check_lost(self, blame, latest: bool = False) -> None:
        """Raise RuntimeError if a row is known to have had no token left to draw, as torch.multinomial does.

        blame(row) may raise an error of its own first. latest: ask for the flags of the latest step too, which may have
        to arrive first.
        """
        lost = (self._arrived(-1) if latest else self._known())[2].numpy()
        if lost.any():
            blame(int(lost.argmax()))
            raise RuntimeError(
                f"row {int(lost.argmax())}: no token is left to draw: its logits are all -inf or NaN, or hold +inf."
                " Allow a token (logits processors, suppress_tokens, a grammar ...), mend the model, or decode greedily"
            )

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
        return self._arrived(0 if self._late else -1)

    def _arrived(self, index: int):
        flags, arrival = self._latest[index]
        if arrival is not None:
            arrival.synchronize()
        return flags


def may_be_late(stopping_criteria, config, streamer, device) -> bool:
    """Whether one more step than Hugging Face's loop goes unseen, and a GPU makes it worth while."""
    silent = all(type(criterion) in _SILENT for criterion in stopping_criteria)
    return device.type == "cuda" and silent and streamer is None and config._pad_token_tensor is not None
