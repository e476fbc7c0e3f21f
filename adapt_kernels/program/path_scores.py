"""Numbers of the paths of a call: token confidences and their windows, log-probs, and who stays by a score."""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch

from adapt_kernels.ops.token_logprobs import token_logprobs

_COLUMNS = 128  # of one group whose maximum is taken first


def top_values(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest values of each row [n, V], in no order; all where V is less.

    They lie in the `count` groups of columns with the largest maxima: one read in place of a selection over V.
    """
    rows, columns = logits.shape
    count = min(count, columns)
    if count * _COLUMNS >= columns:
        return logits.topk(count, 1, sorted=False).values
    whole = columns - columns % _COLUMNS
    groups = logits[:, :whole].unflatten(1, (-1, _COLUMNS))
    best = groups.amax(2).topk(count, 1, sorted=False).indices
    held = groups.gather(1, best[:, :, None].expand(-1, -1, _COLUMNS)).flatten(1)
    # Padding would copy all of it.
    rest = logits[:, whole:]
    return torch.cat([held, rest], 1).topk(count, 1, sorted=False).values


def own_statistics(logits: torch.Tensor, tokens, top: int | None, logprobs: bool):
    """(confidences [n] or None, log-probs of `tokens` [n] or None), float64, of the model's distribution at T = 1.

    logits [n, V], NaN = -inf. Confidence: minus the mean of the `top` largest log-probs, those of -inf left out; None:
    not wanted.
    """
    if logits.device.type == "cpu":
        logits, normaliser = _one_read(logits, tokens)
    else:
        logits = logits.masked_fill(logits.isnan(), float("-inf"))
        normaliser = torch.logsumexp(logits.float(), 1)
    confidence = drawn = None
    if top is not None:
        values = top_values(logits, top).double() - normaliser[:, None].double()
        there = values > -math.inf
        confidence = -values.where(there, 0.0).sum(1) / there.sum(1)
    if logprobs:
        drawn = logits.gather(1, tokens[:, None])[:, 0].double() - normaliser.double()
    return confidence, drawn


def _one_read(logits: torch.Tensor, tokens: torch.Tensor):
    """(logits with NaN = -inf, log sum exp of each row [n] float64), by the native pass where it can run."""
    normaliser = _normaliser(logits, tokens)
    odd = ~normaliser.isfinite()
    if odd.any():
        # NaN in a row, or a token that was forced against the model.
        logits = logits.masked_fill(logits.isnan(), float("-inf"))
        normaliser[odd] = _normaliser(logits[odd], logits[odd].argmax(1))
    return logits, normaliser


def _normaliser(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    logprobs, _ = token_logprobs(logits, ids)
    return logits.gather(1, ids[:, None])[:, 0].double() - logprobs.double()


class Windows:
    """Means of the last `width` values of every row [rows] float64, after each value.

    sums: of all values so far. lowest: the least mean of a full window, inf before there is one.
    """

    def __init__(self, rows: int, width: int, device):
        self._width = width
        self.sums = torch.zeros(rows, dtype=torch.float64, device=device)
        self.lowest = torch.full_like(self.sums, math.inf)
        self._before = deque([self.sums], maxlen=width + 1)

    def add(self, values, alive) -> None:
        """values [rows]: of the rows `alive` [rows] bool; those of others do not count."""
        self.sums = torch.where(alive, self.sums + values, self.sums)
        self._before.append(self.sums)
        if len(self._before) > self._width:
            mean = (self.sums - self._before[0]) / self._width
            self.lowest = torch.where(alive, torch.minimum(self.lowest, mean), self.lowest)

    def groups(self, lengths) -> torch.Tensor:
        """[rows]: the lowest window, or the mean of a row that is shorter than one; lengths [rows]."""
        return torch.where(self.lowest < math.inf, self.lowest, self.sums / lengths.clamp(min=1))


def kept_rows(scores: Sequence[float], groups: Sequence, kept_of: Callable[[int], int]) -> list[bool]:
    """Which rows stay: of each group the `kept_of(its size)` best by score, high = good.

    Ties: the earlier row. NaN comes after every number. Raises ValueError where a group has to choose and all its
    scores are NaN.
    """
    stays = [True] * len(scores)
    for group in dict.fromkeys(groups):
        members = [i for i, own in enumerate(groups) if own == group]
        keep = kept_of(len(members))
        if keep >= len(members):
            continue
        if all(math.isnan(scores[i]) for i in members):
            raise ValueError(
                f"Paths: all {len(members)} scores of a prompt are NaN, so none of its rows can be preferred: score"
                " must return numbers, high = keep"
            )
        # Stable: of equal rows the earlier one comes first.
        for i in sorted(members, key=lambda i: _rank(scores[i]))[keep:]:
            stays[i] = False
    return stays


def _rank(score: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(score) else (False, -score)
