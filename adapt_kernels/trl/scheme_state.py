"""What a scheme carries from batch to batch is kept beside a checkpoint."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_STATE = "scheme_state.safetensors"


def save_state(folder, scheme: str, state: dict[str, torch.Tensor]) -> None:
    """Write what the scheme carries from batch to batch beside a checkpoint."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, Path(folder) / _STATE, {"scheme": scheme})


def load_state(folder, scheme: str, device) -> dict[str, torch.Tensor]:
    """What `save_state` wrote. Raises ValueError naming a file that is missing, not whole or of another scheme."""
    path = Path(folder) / _STATE
    advice = "resume from a checkpoint of this scheme, or begin a new run"
    if not path.is_file():
        raise ValueError(f"{path} is missing, and scheme {scheme!r} carries state between batches: {advice}")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            saved = (file.metadata() or {}).get("scheme")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not whole ({error}): {advice}") from error
    if saved != scheme:
        raise ValueError(f"{path} is of scheme {saved!r}, this run of {scheme!r}: {advice}")
    return state
