"""Forces a mode's closing tokens on the rows that reach its max_new_tokens without having closed by themselves."""

import torch


class Closings:
    """State of one call over all rows, in Hugging Face's order; costs nothing at steps where no mode closes."""

    def __init__(self, modes, rows: int, device):
        # A row has `step` new tokens when token number `step` is chosen, so a mode closes at steps known beforehand.
        self._closings = [
            (index, modes[name].max_new_tokens, modes[name].closing)
            for index, name in enumerate(modes)
            if modes[name].closing is not None
        ]
        self._open = torch.ones(rows, dtype=torch.bool, device=device)

    def at(self, step: int) -> list[tuple]:
        """The modes that close at this step: (mode, its max_new_tokens, its closing)."""
        return [each for each in self._closings if each[1] <= step < each[1] + len(each[2])]

    def under_way(self, step: int, modes, row_of_slot):
        """[slots] bool: rows that are being given a closing, begun before this step; None where none is."""
        found = None
        for mode, limit, _ in self.at(step):
            if step > limit:
                now = (modes == mode) & (self._open if row_of_slot is None else self._open[row_of_slot])
                found = now if found is None else found | now
        return found

    def tokens(self, step: int, input_ids, modes, row_of_slot, busy=None):
        """[slots] int64, -1 = draw.

        input_ids [slots, T] and modes [slots] are of the rows `row_of_slot` [slots], None = every row in order.
        busy [slots] bool: rows whose token is forced already, None = none are.
        """
        tokens = torch.full(modes.shape, -1, device=modes.device)
        for mode, limit, ids in self.at(step):
            if step == limit:
                slots = slice(None) if row_of_slot is None else row_of_slot
                self._open[slots] &= (modes != mode) | ~_contains(input_ids[:, -step:], ids)
                if busy is not None:
                    self._open[slots] &= (modes != mode) | ~busy
            still_open = self._open if row_of_slot is None else self._open[row_of_slot]
            tokens = torch.where((modes == mode) & still_open, ids[step - limit], tokens)
        return tokens


def _contains(tokens, ids: tuple[int, ...]) -> torch.Tensor:
    """[rows] bool: rows of tokens [rows, T] in which `ids` stand one after the other."""
    starts = tokens.shape[1] - len(ids) + 1
    if starts < 1:
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    found = torch.ones(len(tokens), starts, dtype=torch.bool, device=tokens.device)
    for offset, token in enumerate(ids):
        found &= tokens[:, offset : offset + starts] == token
    return found.any(1)
