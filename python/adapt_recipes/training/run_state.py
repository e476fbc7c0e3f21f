"""What every training run has: its folder, its saved state, its clock, its threads and its result.

Half-finished runs are saved with tensors as safetensors and the rest as JSON, never pickle.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from adapt_recipes.storage import write_tensors

FOLDER = "training"
SCHEME = "scheme."  # before the names of what a scheme carries from batch to batch
STATE = "state.json"


@dataclass(frozen=True)
class RunResult:
    """The trained model, and the seconds its training took over all resumed parts."""

    model: Any
    wall_s: float
    cpu_s: float


def check_output(out: Path, resume: bool, checkpoint_every: int) -> None:
    """Raise ValueError unless a run may begin in `out`, or continue there when `resume` is set."""
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the output must be a folder")
    if not out.is_dir() or not any(out.iterdir()):
        if resume:
            raise ValueError(f"{out} holds no run to resume: look at the folder's name, or leave --resume out to begin")
        return
    state = read_state(out)
    if state is None:
        raise ValueError(f"{out} is not empty and holds no saved run ({FOLDER}/state.json): choose another folder")
    if not resume:
        raise ValueError(
            f"{out} already holds a run at step {state['step']}: resume it (--resume) or choose another folder"
        )


def save_run(
    out: Path,
    step: int,
    config: Any,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    spent: dict[str, float],
    scheme_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, optimiser state and the scheme's own after `step` steps into `out`/training.

    Each step has its own tensor file and state.json is replaced last, so an interrupted save leaves the previous one.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value for name, value in _parameters(model)}
    for name, value in _parameters(model):
        for key, moment in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{key}.{name}"] = moment
    tensors |= {SCHEME + key: value for key, value in (scheme_state or {}).items()}
    name = f"step_{step:06d}.safetensors"
    write_tensors(tensors, folder / name)
    state = {"step": step, "tensors": name, "config": asdict(config), "spent": spent}
    aside = folder / (STATE + ".tmp")
    aside.write_text(json.dumps(state, indent=2) + "\n")
    os.replace(aside, folder / STATE)
    for old in folder.glob("step_*.safetensors"):
        if old.name != name:
            old.unlink()


def load_run(
    out: Path,
    config: Any,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, float]]:
    """Restore what `save_run` wrote, in place. Returns what `progress` does."""
    done, spent = progress(out, config)
    if read_state(out) is None:
        return done, spent
    tensors = load_tensors(out)
    with torch.no_grad():
        for name, value in _parameters(model):
            value.copy_(tensors[f"model.{name}"])
            moments = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(moment is not None for moment in moments.values()):
                optimizer.state[value] = moments
    return done, spent


def progress(out: Path, config: Any) -> tuple[int, dict[str, float]]:
    """The finished steps of the run saved in `out`, and the seconds spent; (0, {}) if no run.

    Raises ValueError for a run with another configuration.
    """
    state = read_state(out)
    if state is None:
        return 0, {}
    ours = json.loads(json.dumps(asdict(config)))
    if found := _differences(state["config"], ours):  # a setting that came later was None for the run
        raise ValueError(
            f"{out} holds a run with another configuration ({found}): "
            "resume with the same settings or choose another folder"
        )
    return state["step"], state["spent"]


def load_tensors(out: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The saved run's tensors whose names begin with `prefix`, under the rest of them."""
    path = out / FOLDER / read_state(out)["tensors"]
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not whole ({error}): begin the run again in another folder") from error
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_state(out: Path) -> dict[str, Any] | None:
    """The JSON part of the run saved in `out`, or None when there is none."""
    path = out / FOLDER / STATE
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
        return {name: state[name] for name in ("step", "tensors", "config", "spent")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not whole ({error}): begin the run again in another folder") from error


class Clock:
    """Wall and CPU seconds, counted on from an earlier part of the run."""

    def __init__(self, earlier: dict[str, float]) -> None:
        self._wall = time.perf_counter() - earlier.get("wall_s", 0.0)
        self._cpu = time.process_time() - earlier.get("cpu_s", 0.0)

    def spent(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside the `with`, torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    # Tied weights appear once; what is frozen, as under an adapter, is the base model's.
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _differences(saved: dict, ours: dict, prefix: str = "") -> str:
    found = []
    for key in sorted(saved.keys() | ours.keys()):
        old, new = saved.get(key), ours.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(_differences(old, new, f"{prefix}{key}."))
        elif old != new:
            found.append(f"{prefix}{key}: saved {old!r}, asked {new!r}")
    return ", ".join(part for part in found if part)
