"""How decisions reach an engine's logits: biases, modes drawn here, and ids that nothing after it can undo."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from adapt_kernels.ops.mode_sample import biased_logits, class_edited, mode_probs, mode_sample
from adapt_kernels.ops.steer import Decision
from adapt_kernels.program.rules import Gate
from adapt_kernels.serving.lane import Lane

_NEG_INF = float("-inf")


class NotedDraw(NamedTuple):
    """Modes drawn in one step, [n] each, on the device: rows, log-probs over the whole vocabulary, tempered and
    unbiased, P(mode) [n, M] as of `mode_sample`; at: the rows that did draw."""

    seeds: torch.Tensor
    logprobs: torch.Tensor
    mode_probs: torch.Tensor
    at: torch.Tensor

    def rows(self) -> list[tuple[int, float, list[float]]]:
        """(seed, log-prob, P(mode)) of each row that drew; reads from the device."""
        listed = zip(*(each.tolist() for each in self), strict=True)
        return [(seed, logprob, probs) for seed, logprob, probs, at in listed if at]


_DRAWS: ContextVar[list[NotedDraw] | None] = ContextVar("adapt_kernels_noted_draws", default=None)


@contextmanager
def noted_draws() -> Iterator[list[NotedDraw]]:
    """Yields a list to which every choice among the served modes in this thread adds itself."""
    found: list[NotedDraw] = []
    token = _DRAWS.set(found)
    try:
        yield found
    finally:
        _DRAWS.reset(token)


def write(lane: Lane, logits, rows, places, position, decision: Decision, ready, reads=None) -> None:
    """Edit the logits [N, V] of the rows [m] int64, unique, of `lane`, in place.

    places, position [m] int64 and decision: of those rows; ready [m] bool: the others stay as they are. An id that is
    written, or drawn at a gate, is left as the only one, so no temperature, filter or penalty after this changes it.
    reads: whether the host may look at what was decided, to skip work; None = on a CPU. Otherwise no host sync.
    """
    reads = logits.device.type == "cpu" if reads is None else reads
    if lane.biases and not (reads and not (decision.acting & ready[:, None]).any()):
        _bias(lane, logits, rows, decision, ready)
    forced = torch.where(ready, decision.forced, -1)
    for index in lane.gates:
        at = ready & (decision.gate == index)
        some = at.nonzero()[:, 0] if reads else torch.arange(len(at), device=at.device)
        if len(some):
            drawn = _draw(lane, index, logits[rows[some]], places[some], position[some])
            forced = forced.index_copy(0, some, torch.where(at[some], drawn, forced[some]))
            draws = _DRAWS.get()
            if draws is not None and lane.gated and index == 0:
                draws.append(_noted(lane, logits[rows[some]], places[some], drawn, at[some]))
    _force(logits, rows, forced, reads)


def _bias(lane: Lane, logits, rows, decision: Decision, ready) -> None:
    scale = torch.where(ready[:, None], decision.scale, 1.0)
    bias = torch.where(ready[:, None], decision.bias, 0.0)
    edited = class_edited(logits[rows], lane.compiled.tables.bias_classes, scale, bias)
    logits.index_copy_(0, rows, edited.to(logits.dtype))


def _draw(lane: Lane, index: int, logits, places, position) -> torch.Tensor:
    """[n] int64: a token of one of the modes of the gate `index`, from each row's own stream."""
    held, rule, modes = lane.held, lane.compiled.rules[index], lane.gates[index]
    assert isinstance(rule, Gate)
    chance: dict = {"fast_prob": rule.prob} if rule.prob is not None else {"mode_bias": rule.bias}
    if lane.gated and index == 0:
        # Each row sets its own, and one call takes either biases or probabilities.
        logits = _biased(logits, modes.token_ids, held.mode_bias[places])
        chance = {"fast_prob": held.fast_prob[places], "forced_tokens": held.mode_token[places]}
    return mode_sample(
        logits,
        modes=modes,
        at_mode=True,
        temperature=held.temperature[places],
        seeds=held.seeds[places],
        step=position,
        **chance,
    ).tokens


def _noted(lane: Lane, logits, places, drawn, at) -> NotedDraw:
    z = logits.double().masked_fill(logits.isnan(), _NEG_INF)
    heat = lane.held.temperature[places]
    tempered = torch.log_softmax(z / torch.where(heat > 0, heat, 1.0)[:, None], 1)
    own = mode_probs(z, lane.gates[0].token_ids)
    return NotedDraw(lane.held.seeds[places], tempered.gather(1, drawn[:, None])[:, 0], own, at)


def _biased(logits, ids, bias) -> torch.Tensor:
    """logits [n, V], a copy, with bias [n, M] on the ids of the modes."""
    everywhere = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    if None in ids:
        return biased_logits(logits, ids, everywhere, bias, only_modes=False)
    columns = list(ids)
    logits[:, columns] = biased_logits(logits[:, columns], range(len(ids)), everywhere, bias, only_modes=False)
    return logits


def _force(logits, rows, forced, reads: bool) -> None:
    if reads:
        some = (forced >= 0).nonzero()[:, 0]
        if len(some):
            logits.index_fill_(0, rows[some], _NEG_INF)
            logits[rows[some], forced[some]] = 0.0
        return
    here = torch.full((len(logits),), -1, dtype=torch.int64, device=logits.device).index_copy(0, rows, forced)
    logits.masked_fill_((here >= 0)[:, None], _NEG_INF)
    column = here.clamp(min=0)[:, None]
    logits.scatter_(1, column, torch.where(here[:, None] >= 0, 0.0, logits.gather(1, column)).to(logits.dtype))
