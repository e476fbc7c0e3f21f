"""What a scheme sees of a batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from adapt_kernels.schemes.kinds import column, number, whole


class Steps(NamedTuple):
    """Accuracies measured along the thoughts of a batch: K measurements, those of a row in their order.

    A row's last measurement is that of its real end. Where the others are measured, a later change is rewarded.
    """

    rows: torch.Tensor  # [K] int64, index into the B sequences
    positions: torch.Tensor  # [K] int64, token of the response at which a change after it is rewarded
    accuracies: torch.Tensor  # [K] float


class Rollouts(NamedTuple):
    """What a scheme sees of B sequences. Rows of one prompt share a number in `groups`; modes index the M modes."""

    outcome: torch.Tensor  # [B] float, the sequence's reward
    correct: torch.Tensor  # [B] bool, graded answer
    lengths: torch.Tensor  # [B] int64, tokens of the response, mode token included
    groups: torch.Tensor  # [B] int64
    modes: torch.Tensor  # [B] int64, 0 = fast, -1 = malformed: no valid tag
    num_modes: int
    progress: float = 0.0  # share of the training done
    reference_accuracy: torch.Tensor | None = None  # [B] float, of each prompt under the model before training
    signals: Mapping[str, torch.Tensor] | None = None  # [B] float each, by name: see `SIGNALS`
    step: int = 0  # optimiser steps done
    steps: Steps | None = None
    answer_start: torch.Tensor | None = None  # [B] int64, position of the answer's first token

    def signal(self, name: str) -> torch.Tensor:
        """[B] float64. Raises ValueError for one that is not there."""
        value = self.given(name)
        if value is None:
            raise ValueError(f"it needs {name}, {SIGNALS.get(name, 'a signal of each row')}: give it in signals")
        return value.double()

    def given(self, name: str) -> torch.Tensor | None:
        """The signal, or None."""
        if name == "reference_accuracy" and self.reference_accuracy is not None:
            return self.reference_accuracy
        return (self.signals or {}).get(name)

    @property
    def valid(self) -> torch.Tensor:
        """[B] bool: rows with a mode."""
        return self.modes >= 0


def checked(rollouts: Rollouts) -> Rollouts:
    """The batch with integer columns in int64 and `correct` as bool, whatever they came as.

    Raises TypeError or ValueError for a column of another kind or length, numbers that are not finite, a mode that is
    none of the M, or a row without tokens.
    """
    if not isinstance(rollouts, Rollouts):
        raise TypeError(f"rollouts must be a Rollouts; got {type(rollouts).__name__}")
    if not isinstance(rollouts.outcome, torch.Tensor) or rollouts.outcome.ndim != 1:
        raise TypeError(f"outcome must be a tensor [B]; got {getattr(rollouts.outcome, 'shape', rollouts.outcome)!r}")
    rows = len(rollouts.outcome)
    found: dict[str, Any] = {
        "outcome": finite("schemes need outcome", rollouts.outcome),
        "correct": _verdicts(rollouts, rows),
    }
    for name in ("lengths", "groups", "modes"):
        found[name] = column(name, getattr(rollouts, name), rows, integers=True)
    found["num_modes"] = whole("num_modes", rollouts.num_modes, 1)
    found["step"] = whole("step", rollouts.step, 0)
    if not 0 <= number("progress", rollouts.progress) <= 1:
        raise ValueError(f"progress must be in [0, 1], the share of the training done; got {rollouts.progress}")
    if not isinstance(rollouts.signals, Mapping | None):
        raise TypeError(f"signals must be a mapping {{name: [B]}}; got {type(rollouts.signals).__name__}")
    least, most = (int(end) for end in found["modes"].aminmax()) if rows else (0, 0)
    if not -1 <= least <= most < found["num_modes"]:
        raise ValueError(
            f"modes must be 0 to {found['num_modes'] - 1} (num_modes - 1), or -1 for a malformed row; got {least} to"
            f" {most}"
        )
    if rows and int(found["lengths"].min()) < 1:
        raise ValueError(f"lengths must be at least 1 (the mode token counts); got {int(found['lengths'].min())}")
    return rollouts._replace(**found)


def finite(need: str, values: torch.Tensor) -> torch.Tensor:
    """The values [B] themselves; `need`: who needs what, for the error."""
    if not bool(values.isfinite().all()):
        bad = (~values.isfinite()).nonzero()[:5, 0].tolist()
        raise ValueError(f"{need} of every row; it is not finite for rows {bad}")
    return values


def _verdicts(rollouts: Rollouts, rows: int) -> torch.Tensor:
    correct = column("correct", rollouts.correct, rows)
    if not bool(((correct == 0) | (correct == 1)).all()):
        raise ValueError(f"correct must be bool, or 1 for a right answer and 0 for a wrong one; got {correct.tolist()}")
    return correct.bool()


def checked_steps(name: str, rollouts: Rollouts) -> Steps:
    """The measurements, in int64. Raises TypeError or ValueError unless each is of one of the rows, at a token."""
    if not isinstance(rollouts.steps, Steps):
        raise ValueError(
            f"scheme {name!r} needs Rollouts.steps, a Steps of the accuracies measured along each thought; got"
            f" {type(rollouts.steps).__name__}"
        )
    rows, positions, accuracies = rollouts.steps
    shapes = [tuple(getattr(part, "shape", ())) for part in rollouts.steps]
    if len(shapes[0]) != 1 or len(set(shapes)) > 1:
        raise ValueError(f"steps must be tensors rows, positions and accuracies, [K] each; got shapes {shapes}")
    rows = column("steps.rows", rows, len(rows), integers=True)
    positions = column("steps.positions", positions, len(rows), integers=True)
    bad = (rows < 0) | (rows >= len(rollouts.outcome)) | (positions < 0) | ~accuracies.isfinite()
    if bad.any():
        raise ValueError(
            f"steps must be of rows 0 to {len(rollouts.outcome) - 1}, at positions from 0 on, with finite accuracies;"
            f" got {[part[bad][0].item() for part in rollouts.steps]} at {bad.nonzero()[0].item()}"
        )
    return Steps(rows, positions, accuracies)


# What each signal is, in the words of errors and of `adapt schemes`.
SIGNALS = {
    "finished": "1 for a row that ended by itself, 0 for one that was cut",
    "entropy_think": "the mean token entropy of the thought",
    "entropy_answer": "the mean token entropy after the thought's close tag; 0 without one",
    "entropy_top": "the mean of the highest fifth of the row's token entropies",
    "reflections": "the number of reflection words",
    "triggers": "the number of trigger words that open a stretch of high entropy",
    "repetition": "the share of tokens in repeated n-grams",
    "flawed": "1 where a judge finds an erroneous step",
    "effort": "the share of the group's mean length that an answer may take",
    "conciseness": "a judge's score, .1 to 1",
    "difficulty": "the prompt's difficulty factor",
    "budget": "the tokens allowed to this row",
    "kl": "the row's mean KL divergence from the reference policy",
    "reference_accuracy": "the accuracy before training of each prompt",
}
