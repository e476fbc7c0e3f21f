"""A bounded KV cache while decoding: what each row's layers hold, and what goes when it is too much."""

from typing import Any

import torch

from adapt_kernels.ops.kv_scores import kv_scores
from adapt_kernels.philox import PURPOSE_KEEP, uniform
from adapt_kernels.program.keep import KeepKV, RowError, kept_positions
from adapt_kernels.program.slots import Slots

_COMPARED = 1 << 14


class Keeper:
    """The evictions of one call. Positions are *counted* from the first new token, or from the start of the prompt.

    evictions: how often rows dropped positions. held_peak: counted positions that a row held at most.
    """

    def __init__(self, settings: KeepKV, prompt_mask, prompt_length: int, seeds, thoughts):
        """prompt_mask [rows, prompt] or None. seeds [rows] int64 or None. thoughts: per step, which rows think."""
        self.settings, self._seeds, self._thoughts = settings, seeds, thoughts
        counts_prompt = settings.count == "all"
        self.start = 0 if counts_prompt else prompt_length  # held position where counting begins
        self._prompt = prompt_length if counts_prompt else 0
        self._mask = prompt_mask
        self._held: list | None = None  # [rows(, heads), n] of each store after the last eviction
        self._seen_at = 0
        self._head_scores: list[torch.Tensor] = []
        self.evictions = self.held_peak = 0

    def note_hidden(self, hidden, slots: Slots) -> None:
        """hidden [slots, h]: of the tokens whose KV was just written."""
        scorer: Any = self.settings.score
        self._head_scores.append(slots.spread(scorer.token_scores(hidden), 0.0))

    def must_evict(self, stores) -> bool:
        """Whether one position more than the budget is held."""
        return self.observe(stores) > self.settings.budget

    def observe(self, stores, surplus: int = 0) -> int:
        """The counted positions that a row holds now, but for the last `surplus` ones."""
        held = stores[0].held - self.start - surplus
        self.held_peak = max(self.held_peak, held)
        return held

    def evict(self, stores, watches, slots: Slots, gone) -> None:
        """Drop positions of every store. gone [slots] bool: rows that show no more."""
        held, seen = stores[0].held - self.start, stores[0].seen - self.start
        outside = self.settings.outside(held)
        if outside + self.settings.window == held:
            return
        real, guarded = self._tables(slots, seen, gone)
        previous, kept = self._held or [None] * len(stores), []
        index = None
        for number, store in enumerate(stores):
            if index is None or not self._same_everywhere:
                where = self._where(previous[number], slots, seen)
                scores = self._scores(number, store, watches[number], where, slots, real)
                where = where[:, None].expand(scores.shape) if scores.ndim > where.ndim else where
                scores = scores[:, None].expand(where.shape) if where.ndim > scores.ndim else scores
                index = self._chosen(scores, outside, _of(guarded, where), ~_of(real, where), slots)
                chosen = slots.spread(where.gather(-1, index).int(), 0)
            kept.append(chosen)
            store.keep(self._whole(index))
        self._held, self._seen_at = kept, seen
        self.evictions += 1

    def held_mask(self, slots: Slots, stores) -> torch.Tensor | None:
        """[slots, held] of what all full-attention layers hold, in the prompt mask's dtype; None without a mask."""
        if self._mask is None:
            return None
        prompt, held = slots.take(self._mask), stores[0].held
        if self._prompt and self._held is not None:
            where = self._where(self._held[0], slots, stores[0].seen)
            # Padding goes first, so every head holds the same of it.
            where = where if where.ndim == 2 else where[:, 0]
            ones = prompt.new_ones(len(slots), stores[0].seen - prompt.shape[1])
            return torch.cat([prompt, ones], 1).gather(1, where)
        return torch.cat([prompt, prompt.new_ones(len(slots), held - prompt.shape[1])], 1)

    @property
    def _same_everywhere(self) -> bool:
        """Whether all layers hold the same positions."""
        if self.settings.by_head:
            return self._head_scores[0].ndim == 1
        return self.settings.score in ("recent", "random")

    def _where(self, kept, slots: Slots, seen: int) -> torch.Tensor:
        """[slots(, heads), held]: the counted positions that a store holds."""
        fresh = torch.arange(self._seen_at if kept is not None else 0, seen, device=slots.index.device)
        if kept is None:
            return fresh.expand(len(slots), -1)
        old = slots.take(kept).long()
        return torch.cat([old, fresh.expand(*old.shape[:-1], -1)], -1)

    def _tables(self, slots: Slots, seen: int, gone) -> tuple[torch.Tensor, torch.Tensor]:
        """(no padding, never dropped) bool [slots, seen] by counted position."""
        place = torch.arange(seen, device=slots.index.device).expand(len(slots), -1)
        real, first = torch.ones_like(place, dtype=torch.bool), torch.zeros_like(place[:, :1])
        if self._prompt and self._mask is not None:
            real = torch.cat([slots.take(self._mask) != 0, real[:, self._prompt :]], 1)
            first = (~real).sum(1, keepdim=True)
        guarded = (place < self._prompt) | (place - first < self.settings.sinks)
        if self._thoughts is not None:
            inside = slots.take(self._thoughts.history())[:, : seen - self._prompt]
            guarded[:, self._prompt :] |= ~inside
        return real, guarded & real & ~gone[:, None]

    def _scores(self, number: int, store, watch, where, slots: Slots, real) -> torch.Tensor:
        """[slots, held] or [slots, heads, held]: higher stays."""
        score: Any = self.settings.score
        if score == "recent":
            return where.float()
        if score == "random":
            seeds = slots.take(self._seeds).reshape(-1, *[1] * (where.ndim - 1))
            return uniform(seeds, torch.zeros_like(where), PURPOSE_KEEP, where)
        if self.settings.by_head:
            return self._from_head(number, where, slots)
        keys, values = store.counted(self.start)
        if isinstance(score, str):
            queries = watch.queries() if self.settings.queries else None
            # Padding goes first: no head holds other padding than the first one.
            mask = _of(real, where if where.ndim == 2 else where[:, 0])
            found = kv_scores(score, keys, values, queries, mask, watch and watch.scale, watch and watch.softcap)
            return _compared(found)
        given = score.score(watch.module, watch.hidden(), keys, values, None, watch.kwargs)
        return _checked_scores(given, score, keys)

    def _from_head(self, number: int, where, slots: Slots) -> torch.Tensor:
        scores = slots.take(torch.stack(self._head_scores, 1))
        scores = scores if scores.ndim == 2 else scores[..., number]
        if self._prompt:
            scores = torch.cat([scores.new_zeros(len(slots), self._prompt), scores], 1)
        return _of(scores, where)

    def _chosen(self, scores, outside: int, guarded, padding, slots: Slots) -> torch.Tensor:
        try:
            return kept_positions(scores, self.settings.window, outside, guarded, padding)
        except RowError as error:
            raise ValueError(
                f"kv_keep: row {slots.row(error.row)} {error.what} (budget={self.settings.budget},"
                f" keep={self.settings.keep}, window={self.settings.window}; prompt, answer and sinks are protected)"
            ) from error

    def _whole(self, index) -> torch.Tensor:
        """The same among all held positions, the prompt included."""
        if not self.start:
            return index
        prompt = torch.arange(self.start, device=index.device).expand(*index.shape[:-1], -1)
        return torch.cat([prompt, index + self.start], -1)


def _of(table, where) -> torch.Tensor:
    """Entries of table [slots, seen] at where [slots, held] or [slots, heads, held]."""
    table = table if where.ndim == 2 else table[:, None].expand(-1, where.shape[1], -1)
    return table.gather(-1, where)


def _compared(scores) -> torch.Tensor:
    """To 14 bits. A token's keys have one norm wherever it stands, up to rounding that depends on the batch: such ties
    must go to the older position in any batch."""
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * _COMPARED).round() / _COMPARED, exponent)


def _checked_scores(scores, score, keys) -> torch.Tensor:
    slots, heads, held = keys.shape[:3]
    if not torch.is_tensor(scores) or scores.shape not in ((slots, held), (slots, heads, held)):
        shown = tuple(scores.shape) if torch.is_tensor(scores) else type(scores).__name__
        raise ValueError(
            f"kv_keep: {type(score).__name__}.score must give [{slots}, {held}] or [{slots}, {heads}, {held}]; got"
            f" {shown}"
        )
    return scores
