"""Tensor files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write `tensors` to the safetensors file `path`, which keeps its old content until the new one is complete.

    Raises OSError, saying which file and why, when the disk is full or cannot be written; nothing half-written stays.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, aside, {"format": "pt"})
        os.replace(aside, path)
    except (SafetensorError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}; make room or choose another folder") from error
