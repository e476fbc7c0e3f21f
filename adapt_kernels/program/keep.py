"""Which positions of a bounded KV cache stay: the settings of a call, and the one rule that every store follows."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch

# score -> what it looks at: nothing but the position, keys and values, or the last so many queries too.
SCORES = {"recent": 0, "random": 0, "key_norm": 0, "value_norm": 0, "key_diff": 0, "snap": 64, "tova": 1, "r_kv": 8}


@dataclass(frozen=True)
class KeepKV:
    """A KV budget with two water marks: a row that holds more than `budget` positions falls to fewer.

    budget: positions a row may hold before a forward. Once one more is held, at n = budget + 1, some are dropped.
    keep: float, the share kept of the n - window positions outside the window, so that window + floor(keep * (n -
        window)) stay (1.0 drops nothing); or int, the positions held afterwards.
    window: the newest positions, kept whatever their score.
    score: "recent", "random" (from the row's seed), "key_norm" (small keys stay), "value_norm" (large values stay),
        "key_diff" (keys unlike the others), "snap", "tova", "r_kv" (by the attention of the last queries), an
        `adapt_kernels.TokenScorer`, or any object with score(module, hidden_states, keys, values, attentions, kwargs)
        -> [rows, heads, positions] as in kvpress. Higher stays; ties (of those by name: to 14 bits): the older.
    count: "new", the budget is one of new tokens, the prompt is held beside it, and a row's tokens depend on no other
        row; "all", padding and prompt count, as published for DynTS: padding goes first.
    sinks: first positions that are never dropped, of the new tokens under "new", of the whole row under "all".

    The prompt always stays. Where the model's think span is known, so does what lies outside of it.
    Raises ValueError or TypeError that names the setting, what was given and what is allowed.
    Sources: DynTS 2601.18383, StreamingLLM 2309.17453, SnapKV 2404.14469, TOVA 2401.06104, R-KV 2505.24133, kvpress.
    """

    budget: int
    keep: float | int
    window: int
    score: object = "recent"
    count: str = "new"
    sinks: int = 0

    def __post_init__(self):
        for name, least in (("budget", 1), ("window", 0), ("sinks", 0)):
            _check_integer(name, getattr(self, name), least)
        if self.window >= self.budget:
            raise ValueError(
                f"window must be below the budget, or nothing can be dropped; got window={self.window} and"
                f" budget={self.budget}"
            )
        self._check_keep()
        if self.count not in ("new", "all"):
            raise ValueError(f"count must be 'new' or 'all'; got {self.count!r}")
        if isinstance(self.score, str) and self.score not in SCORES:
            raise ValueError(
                f"score must be one of {', '.join(map(repr, SCORES))}, a TokenScorer or an object with a score method;"
                f" got {self.score!r}"
            )
        if not isinstance(self.score, str) and not (self.by_head or callable(getattr(self.score, "score", None))):
            raise TypeError(
                "score must be a name, a TokenScorer, or an object with score(module, hidden_states, keys, values,"
                f" attentions, kwargs); got {type(self.score).__name__}"
            )
        if self.sinks + self.window > self.held:
            raise ValueError(
                f"sinks and window must fit what is held after an eviction, {self.held} positions; got"
                f" sinks={self.sinks} and window={self.window}"
            )

    def _check_keep(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, Real):
            raise TypeError(f"keep must be a share (float) or a number of positions (int); got {self.keep!r}")
        if not isinstance(self.keep, Integral):
            if not 0 <= self.keep <= 1:
                raise ValueError(f"keep as a share must lie in [0, 1]; got {self.keep} (an int counts positions)")
        elif not self.window <= self.keep < self.budget:
            raise ValueError(
                f"keep, the positions held after an eviction, must be at least the window and below the budget; got"
                f" keep={self.keep}, window={self.window} and budget={self.budget}"
            )
        if self.held < 1:
            raise ValueError(f"keep={self.keep} and window={self.window} leave no position: raise one of them")

    @property
    def by_head(self) -> bool:
        """Whether a head scores each token's hidden state once."""
        return callable(getattr(self.score, "token_scores", None))

    @property
    def queries(self) -> int:
        """How many of the last queries the score reads; 0 = none."""
        most = SCORES[self.score] if isinstance(self.score, str) else 0
        # A query of a dropped window would see keys that are gone.
        return min(most, max(self.window, 1))

    @property
    def everything(self) -> bool:
        """Whether evictions drop nothing."""
        return self.outside(self.budget + 1) + self.window > self.budget

    def outside(self, held: int) -> int:
        """Positions kept outside the window when `held` are held."""
        if isinstance(self.keep, Integral):
            return int(self.keep) - self.window
        return math.floor(self.keep * (held - self.window))

    @property
    def held(self) -> int:
        """Positions held right after the first eviction."""
        return self.window + self.outside(self.budget + 1)

    def check_prompt(self, length: int, real: int) -> None:
        """Raises ValueError where prompts [length positions, padding included; the longest has `real`] do not fit."""
        if self.count == "new":
            return
        if length >= self.budget:
            raise ValueError(
                f"kv_keep: with count='all' the prompt must be shorter than the budget; got a prompt of {length}"
                f" positions and budget={self.budget}. Raise the budget, or count new tokens only: count='new'"
            )
        if real > self.held:
            raise ValueError(
                f"kv_keep: the prompt is protected, and its {real} positions do not fit the {self.held} that are held"
                " after an eviction. Raise keep or budget, or count new tokens only: count='new'"
            )


class RowError(ValueError):
    """Of one row: what is wrong with it."""

    def __init__(self, row: int, what: str):
        super().__init__(f"row {row} {what}")
        self.row, self.what = row, what


def _check_integer(name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a number of positions (int); got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


@torch.no_grad()
def kept_positions(
    scores: torch.Tensor,
    window: int,
    keep: int,
    protected: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """The positions that stay: the newest `window`, and of the others the `keep` with the highest scores.

        order  = protected first, then the window (newest first), then by score (ties: the older first, NaN last), then
                 padding (the older first)
        result = ascending(order[: keep + window])

    so that protected positions always stay: where a row has more than `keep` of them outside the window, its window
    gives way from its oldest end, and every row keeps equally many.

    Args:
        scores: [B, T] or [B, heads, T], any real dtype; higher stays; not read inside the window.
        window, keep: integers >= 0, together at most T.
        protected, padding: bool, [B, T] or the shape of scores; None = nothing. Scores of padding are not read.

    Returns int64 [B, keep + window] or [B, heads, keep + window], ascending. Deterministic; one host sync.

    Raises ValueError: window and keep beyond T; a row that protects more than keep + window positions; a row whose
    scores are all NaN where it has to choose. TypeError: other types.
    """
    _check_kept_arguments(scores, window, keep)
    length = scores.shape[-1]
    protected = _marked("protected", protected, scores)
    padding = _marked("padding", padding, scores) & ~protected
    place = torch.arange(length, device=scores.device)
    newest = place >= length - window
    value = scores.double()
    free = ~newest & ~protected & ~padding
    unknown = value.isnan() & free
    _check_room(protected, free, unknown, newest, keep + window, keep)
    rank = torch.where(protected, 4, torch.where(newest, 3, torch.where(padding, 0, torch.where(unknown, 1, 2))))
    value = torch.where(protected | newest, place.double(), value.masked_fill(unknown | padding, -math.inf))
    # Two stable sorts: by score, then by rank. Never top-k, whose order among ties is not defined.
    order = value.sort(dim=-1, descending=True, stable=True).indices
    by_rank = rank.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices
    return order.gather(-1, by_rank)[..., : keep + window].sort(dim=-1).values


def _check_kept_arguments(scores, window, keep) -> None:
    if not torch.is_tensor(scores) or scores.is_complex() or scores.ndim not in (2, 3):
        shown = tuple(scores.shape) if torch.is_tensor(scores) else type(scores).__name__
        raise TypeError(f"scores must be a real tensor [B, T] or [B, heads, T]; got {shown}")
    _check_integer("window", window, 0)
    _check_integer("keep", keep, 0)
    if keep + window > scores.shape[-1]:
        raise ValueError(
            f"keep + window must be at most the {scores.shape[-1]} positions of scores; got keep={keep} and"
            f" window={window}"
        )


def _marked(name: str, positions, scores) -> torch.Tensor:
    """The same in the shape of scores; None: nothing is marked."""
    if positions is None:
        return torch.zeros_like(scores, dtype=torch.bool)
    if not torch.is_tensor(positions) or positions.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor; got {getattr(positions, 'dtype', type(positions).__name__)}")
    if positions.shape not in (scores.shape, (scores.shape[0], scores.shape[-1])):
        raise ValueError(f"{name} must have shape {tuple(scores.shape)}; got {tuple(positions.shape)}")
    return (positions if positions.ndim == scores.ndim else positions[:, None]).expand(scores.shape)


def _check_room(protected, free, unknown, newest, room: int, keep: int) -> None:
    """Of every row: what it protects must fit, and something must be known of what may go."""
    counts = protected.sum(-1)
    left = keep - (protected & ~newest).sum(-1)
    blind = (unknown == free).all(-1) & (left > 0) & (left < free.sum(-1))
    faults = torch.stack([counts > room, blind])
    faults = faults.any(-1) if faults.ndim == 3 else faults
    if not faults.any():
        return
    over, blind = faults.cpu()
    if over.any():
        row = int(over.nonzero()[0])
        most = int(counts[row].max())
        raise RowError(
            row, f"protects {most} positions, and only {room} may be held after an eviction: raise keep or budget"
        )
    raise RowError(
        int(blind.nonzero()[0]), "has NaN for a score everywhere: all scores are NaN, and none says what stays"
    )
