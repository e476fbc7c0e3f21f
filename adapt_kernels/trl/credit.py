"""From the rewards of a rollout to the advantages of its mode tokens and responses."""

from collections.abc import Callable

import torch

from adapt_kernels.advantages import Advantages
from adapt_kernels.modes import Modes
from adapt_kernels.schemes import Rollouts, Steps
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.finite import check_finite
from adapt_kernels.trl.rollout import Rollout, RolloutRows
from adapt_kernels.trl.signals import (
    ENTROPIES,
    close_of_thought,
    columns_of,
    grading,
    own_signals,
    signal_sources,
    thought_ends,
)


def verdicts(rewards: torch.Tensor, threshold: float) -> torch.Tensor:
    """[N] 1 for a correct answer, 0 for a wrong one, NaN for one that was not graded; rewards [N]."""
    return torch.where(rewards.isnan(), torch.nan, (rewards >= threshold).to(rewards.dtype))


class Crediting:
    """The scheme of a run: the sources of its signals, and what it carries from batch to batch (`state`)."""

    def __init__(self, args: ADaPTConfig, modes: Modes, names: list[str], measure: Callable | None):
        self.args, self.modes, self.names = args, modes, names
        self.sources = signal_sources(args, names)
        self.correct = grading(args, names)
        self.close = close_of_thought(args, self.sources, modes)
        self.measure = measure if args.method.placed is not None else None
        self.state: dict[str, torch.Tensor] = {}

    @property
    def needs_entropy(self) -> bool:
        return any(source.kind == "trainer" and name in ENTROPIES for name, source in self.sources.items())

    def rows(self, rollout: Rollout, batch: dict, inputs: list, response, entropy, end_ids) -> RolloutRows:
        """This rank's. response [B, T] bool: what was drawn after the mode token; entropy [B, T] of it, or None."""
        ends = None if self.close is None else thought_ends(batch["completion_ids"], rollout, self.close)
        found = own_signals(batch, rollout, response, entropy, ends, end_ids)
        columns = columns_of(inputs, self.sources)
        signals = {
            name: torch.tensor(columns[name], device=response.device)
            if source.kind == "column"
            else found[name].float()
            for name, source in self.sources.items()
            if source.kind != "reward"
        }
        return rollout.rows(self.modes, signals, None if ends is None else ends[1])

    def measured(self, prompts, completions, completion_ids, columns: dict) -> list[list[tuple[int, float]]] | None:
        """This rank's (token of the completion, accuracy) of each row. Raises ValueError for what is none."""
        if self.measure is None:
            return None
        found = self.measure(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        if len(found) != len(completion_ids):
            raise ValueError(f"measure_steps must give a list for each of {len(completion_ids)} rows; got {len(found)}")
        for row, (marks, ids) in enumerate(zip(found, completion_ids, strict=True)):
            for place, value in marks:
                if not 0 <= place < len(ids) or not 0 <= value <= 1:
                    raise ValueError(
                        f"measure_steps must give (token, accuracy) with a token below {len(ids)} and an accuracy in"
                        f" [0, 1] for row {row}; got {(place, value)}"
                    )
        return found

    def advantages(
        self, everyone: RolloutRows, rewards: torch.Tensor, outcome, correct, group_size, done, steps, training: bool
    ) -> Advantages:
        """Of all rows; see `credited`. rewards [N, F] of the reward functions. Evaluation leaves the state as it is."""
        signals = {
            name: rewards[:, self.names.index(source.name)] if source.kind == "reward" else everyone.signals[name]
            for name, source in self.sources.items()
        }
        state = self.state if training else dict(self.state)
        rest = group_size, done, signals, steps, state
        return credited(self.args, self.modes, everyone, outcome, correct, *rest)


def credited(
    args: ADaPTConfig,
    modes: Modes,
    everyone: RolloutRows,
    outcome: torch.Tensor,
    correct: torch.Tensor,
    group_size: int,
    done: tuple[float, int],
    signals: dict[str, torch.Tensor],
    steps: list[list] | None,
    state: dict[str, torch.Tensor],
) -> Advantages:
    """Advantages of N rows, `group_size` rows a group; answers and tokens by their place among the drawn tokens.

    everyone, outcome [N], correct [N] (as `verdicts` gives), signals [N] each and steps, N lists of (position,
    accuracy), span all ranks, so that every rank finds the same and `state`, updated in place, stays the same on all.
    done: progress, and optimiser steps. Rows that were not graded get 0, and the others are compared without them.
    Raises ValueError for rows whose advantage is not finite.
    """
    check_finite(outcome[None], "the weighted reward")
    graded = ~correct.isnan()
    chosen_modes = everyone.modes
    if "malformed" in signals:
        chosen_modes = torch.where(signals["malformed"] != 0, -1, chosen_modes)
    known = {name: values[graded] for name, values in signals.items() if name != "malformed"}
    rollouts = Rollouts(
        outcome[graded],
        (correct == 1)[graded],
        everyone.drawn[graded],
        (torch.arange(len(correct), device=correct.device) // group_size)[graded],
        chosen_modes[graded],
        len(modes),
        done[0],
        signals=known,
        step=done[1],
        steps=None if steps is None else _measured(steps, graded),
        answer_start=everyone.answer_start[graded],
    )
    found = args.method.advantages(rollouts, args.scheme_settings, state)
    found = Advantages._make(None if part is None else _spread(part, graded) for part in found)
    check_finite(torch.stack([found.mode, found.rest]), f"the advantage of scheme {args.scheme!r}")
    return found


def _spread(part: torch.Tensor, graded: torch.Tensor) -> torch.Tensor:
    """Entries of the graded rows among all, which are 0."""
    whole = part.new_zeros(len(graded), *part.shape[1:])
    whole[graded] = part
    return whole


def _measured(steps: list[list], graded: torch.Tensor) -> Steps:
    kept = [row for row, counts in zip(steps, graded.tolist(), strict=True) if counts]
    marks = [(index, int(place), float(value)) for index, row in enumerate(kept) for place, value in row]
    table = torch.tensor(marks, dtype=torch.float64, device=graded.device).reshape(-1, 3)
    return Steps(table[:, 0].long(), table[:, 1].long(), table[:, 2])


def among_drawn(steps: list[list], drawn: torch.Tensor) -> list[list]:
    """Steps whose tokens of the completion are counted among those that were drawn, [B, T] bool."""
    places = (drawn.cumsum(1) - 1).clamp(min=0).tolist()
    return [[(place[at], value) for at, value in row] for place, row in zip(places, steps, strict=True)]


def token_advantages(found: Advantages, at_mode: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """[B, T] from these rows' advantages; response: what was drawn after the mode token."""
    if found.answer is None and found.tokens is None:
        return torch.where(at_mode, found.mode[:, None], found.rest[:, None])
    drawn = at_mode | response
    whole = found.expand(drawn.shape[1])
    return torch.where(drawn, whole.gather(1, (drawn.cumsum(1) - 1).clamp(min=0)), 0.0)
