"""A checkpoint taken while a rollout is still being trained on keeps that rollout."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def save_rollouts(folder, rank: int, ranks: int, step: int, batches: list[dict] | None) -> None:
    """Write this rank's batches of the current rollout, and `step`, the trainer's count of forward-backward passes."""
    tensors = {
        f"{index}.{name}": tensor.detach().cpu().clone()
        for index, batch in enumerate(batches or ())
        for name, tensor in batch.items()
        if tensor is not None
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({"step": torch.tensor(step), **tensors}, _file(folder, rank, ranks))


def load_rollouts(folder, rank: int, ranks: int, device) -> tuple[int, list[dict] | None] | None:
    """(step, batches or None) as saved by as many ranks; None if this checkpoint has none of theirs.

    Raises ValueError naming the file if it is not whole.
    """
    path = _file(folder, rank, ranks)
    if not path.is_file():
        return None
    try:
        tensors = {key: tensor.to(device) for key, tensor in load_file(path).items()}
        step = int(tensors.pop("step"))
        batches: dict[int, dict] = {}
        for key, tensor in tensors.items():
            index, name = key.split(".", 1)
            batches.setdefault(int(index), {})[name] = tensor
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole saved rollout ({error}): resume from an earlier checkpoint, or delete the file to"
            " go on from this one with a new rollout"
        ) from error
    return step, [batches[index] for index in sorted(batches)] or None


def _file(folder, rank: int, ranks: int) -> Path:
    return Path(folder) / f"rollout_{rank}_of_{ranks}.safetensors"
