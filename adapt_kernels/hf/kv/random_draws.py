"""Whether a forward drew random numbers: those of a whole batch are not those of some of its rows."""

import torch


def random_states(device) -> list[torch.Tensor]:
    """States of the generators that a forward on this device can draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def drawn_from(before: list[torch.Tensor], device) -> bool:
    """Whether a generator was used since; it is then put back."""
    if all(map(torch.equal, before, random_states(device))):
        return False
    torch.set_rng_state(before[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(before[1], device)
    return True
