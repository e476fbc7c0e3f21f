"""Where the signals of a scheme come from: the trainer itself, a reward function or a dataset column."""

from typing import NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.program.steer_request import thought_spans
from adapt_kernels.schemes import SIGNALS
from adapt_kernels.trl.config import ADaPTConfig

ENTROPIES = ("entropy_think", "entropy_answer", "entropy_top")
_PHASES = ENTROPIES[:2]
_OWN = ("finished", *ENTROPIES, "kl")


class Source(NamedTuple):
    """kind: "trainer", "reward" or "column"; name: of the reward function or the column."""

    kind: str
    name: str


def signal_sources(args: ADaPTConfig, names: list[str]) -> dict[str, Source]:
    """The source of every signal that the scheme needs or can use; names: of the reward functions.

    What `args.signals` names; else a reward function of the signal's name; else the trainer; else, where the scheme
    needs it, a column of its name.
    """
    given, method = dict(args.signals or {}), args.method
    if "reference_accuracy" in method.signals:
        given.setdefault("reference_accuracy", args.reference_accuracy_column)
    found = {}
    for signal in (*method.signals, *method.optional, *(("malformed",) if "malformed" in given else ())):
        name = given.get(signal, signal)
        if name in names:
            found[signal] = Source("reward", name)
        elif signal not in given and signal in _OWN:
            if signal != "kl" or args.beta:
                found[signal] = Source("trainer", signal)
        elif signal in given or signal in method.signals:
            found[signal] = Source("column", name)
    return found


def outcome_weights(args: ADaPTConfig, names: list[str], weights: torch.Tensor) -> torch.Tensor:
    """TRL's weights [F] of the reward functions; those that only give a signal weigh 0 unless `reward_weights` says."""
    if args.reward_weights is not None:
        return weights
    giving = {source.name for source in signal_sources(args, names).values() if source.kind == "reward"}
    return torch.tensor([0.0 if name in giving else 1.0 for name in names], dtype=weights.dtype, device=weights.device)


def grading(args: ADaPTConfig, names: list[str]) -> int:
    """Index of the function that says what is correct. Raises ValueError if all of them only give signals."""
    if args.correct_reward is not None:
        return names.index(args.correct_reward)
    giving = {source.name for source in signal_sources(args, names).values() if source.kind == "reward"}
    others = [index for index, name in enumerate(names) if name not in giving]
    if not others:
        raise ValueError(
            f"reward_funcs must hold one that says what is correct; {', '.join(names)} give signals: add one, or name"
            " one of them in correct_reward"
        )
    return others[0]


def close_of_thought(args: ADaPTConfig, sources: dict[str, Source], modes: Modes) -> tuple[int, ...] | None:
    """The ids that close a thought, if the scheme looks at either side of them.

    Raises ValueError where the modes do not tell it.
    """
    asked = [name for name in _PHASES if sources.get(name) == Source("trainer", name)]
    if "answer" in args.method.segments:
        asked.append("the answer's segment")
    if not asked:
        return None
    closes = {_ids(thought.span.close) for thought in thought_spans(modes, {}).values()}
    if len(closes) != 1:
        raise ValueError(
            f"scheme {args.scheme!r} needs {' and '.join(asked)}, and these modes do not tell where a thought closes:"
            " give the slow mode a closing (adapt_kernels.Mode(ids, closing=...)), or name a reward function or column"
            " for it in signals"
        )
    return closes.pop()


def _ids(pattern) -> tuple[int, ...]:
    """The ids of a pattern's first alternative."""
    if isinstance(pattern, dict):
        return tuple(pattern["seq"][0])
    return _ids(pattern[0]) if isinstance(pattern, (list, tuple)) else (int(pattern),)


def thought_ends(ids: torch.Tensor, rollout, close: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """([B], [B]): where each thought ends in the completion ids [B, T], and where the answer starts, behind the tag.

    Without a tag a row is all thought, but one of the first mode is all answer.
    """
    width, size = ids.shape[1], len(close)
    position = torch.arange(width, device=ids.device)
    hit = torch.ones_like(ids, dtype=torch.bool)
    for offset, token in enumerate(close):
        hit &= (ids.roll(-offset, 1) == token) & (position + size <= rollout.lengths[:, None])
    first = hit.long().argmax(1)
    without = torch.where(rollout.modes == 0, 0, rollout.lengths)
    found = hit.any(1)
    return torch.where(found, first, without), torch.where(found, first + size, without)


def own_signals(batch: dict, rollout, response: torch.Tensor, entropy: torch.Tensor | None, ends, end_ids) -> dict:
    """{name: [B]} of what the trainer knows of its rows. response [B, T] bool: what was drawn after the mode token;
    entropy [B, T] of these, if any is asked; ends: `thought_ends`, or None."""
    found = {"finished": rollout.ended(batch["completion_ids"], end_ids).float()}
    if entropy is not None:
        found["entropy_top"] = _top_mean(entropy, response)
        if ends is not None:
            position = torch.arange(response.shape[1], device=response.device)
            found["entropy_think"] = _mean(entropy, response & (position < ends[0][:, None]))
            found["entropy_answer"] = _mean(entropy, response & (position >= ends[1][:, None]))
    if batch.get("ref_per_token_logps") is not None:
        delta = torch.where(response, batch["ref_per_token_logps"] - batch["old_logprobs"], 0.0)
        found["kl"] = _mean(delta.exp() - delta - 1, response)
    return found


def _mean(values, mask) -> torch.Tensor:
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def _top_mean(values, mask) -> torch.Tensor:
    """[B]: the mean of the highest fifth, at least one, of the values [B, T] where the mask is true; 0 of none."""
    count = (mask.sum(1) // 5).clamp(min=1)
    highest = torch.where(mask, values, -torch.inf).sort(1, descending=True).values
    first = torch.arange(values.shape[1], device=values.device) < count[:, None]
    return _mean(highest, first & highest.isfinite())


def columns_of(inputs: list[dict], sources: dict[str, Source]) -> dict[str, list[float]]:
    """{signal: values} of the dataset's rows. Raises ValueError naming a column that does not hold a number."""
    found = {}
    for signal, source in sources.items():
        if source.kind == "column":
            try:
                found[signal] = [float(row[source.name]) for row in inputs]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"column {source.name!r} must hold a number in every row, for the signal {signal}"
                    f" ({SIGNALS.get(signal, 'malformed: 1 or 0')}): {error!r}"
                ) from error
    return found
