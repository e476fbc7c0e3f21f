"""The ids that open modes: what all begin with, the token of a named one, what follows the choice."""

import torch

from adapt_kernels.modes import Modes


class Openings:
    """Of a call's modes; gate: the step of the choice; last_step: after it no mode is being opened."""

    def __init__(self, modes: Modes, device):
        self._prefix, self.gate = modes.prefix, len(modes.prefix)
        self._ids = torch.tensor([-1 if i is None else i for i in modes.token_ids], device=device)
        self._suffixes = _suffix_table(modes, device)
        self.last_step = self.gate + self._suffixes.shape[1]

    def tokens(self, step: int, named, modes):
        """[slots] int64, -1 = draw, for rows that are restricted to the modes; None after the last step.

        named [slots] int64: the mode that the caller asked for, -1 = the model chooses; modes [slots]: the chosen ones.
        """
        if step > self.last_step:
            return None
        if step < self.gate:
            return torch.full_like(named, self._prefix[step])
        if step > self.gate:
            return self.suffix(step, modes)
        return torch.where(named >= 0, self._ids[named.clamp(min=0)], -1)

    def suffix(self, step: int, modes):
        """[slots] int64: what follows the choice of `modes` [slots] at this step, -1 = nothing."""
        after = self._suffixes[modes.clamp(min=0).long(), step - self.gate - 1]
        return torch.where(modes >= 0, after, -1)


def _suffix_table(modes: Modes, device) -> torch.Tensor:
    """[M, longest] int64: the ids forced after each mode's decision, -1 = none."""
    longest = max(map(len, modes.suffixes))
    rows = [list(suffix) + [-1] * (longest - len(suffix)) for suffix in modes.suffixes]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(modes), longest)


def opened_modes(modes: Modes, new_tokens: torch.Tensor) -> torch.Tensor:
    """int8 [rows]: the mode whose ids the new tokens [rows, T] begin with, -1 = none."""
    found = torch.full((new_tokens.shape[0],), -1, dtype=torch.int8, device=new_tokens.device)
    if None in modes.token_ids and new_tokens.shape[1]:
        found.fill_(modes.token_ids.index(None))
    for index, ids in enumerate(map(modes.tokens, modes)):
        if ids is not None and len(ids) <= new_tokens.shape[1]:
            starts = (new_tokens[:, : len(ids)] == torch.tensor(ids, device=new_tokens.device)).all(1)
            found = found.masked_fill(starts, index)
    return found
