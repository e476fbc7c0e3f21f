"""What schemes carry from batch to batch: entries of a dict of small float64 tensors, replaced in place."""

import torch

State = dict[str, torch.Tensor]


def moving_average(state: State, name: str, value: torch.Tensor, decay: float) -> torch.Tensor:
    """decay * what was + (1 - decay) * value; the first time, the value itself."""
    before = state.get(name)
    value = value.detach().double()
    state[name] = value.clone() if before is None else decay * before.to(value.device) + (1 - decay) * value
    return state[name]


def remembered(state: State, name: str, columns: tuple[torch.Tensor, ...], window: int) -> torch.Tensor:
    """[K, C] float64: the rows given in the last `window` batches, this one's [k] columns among them."""
    count = int(state.get(f"{name}_batches", torch.tensor(0.0))) + 1
    new = torch.stack([column.double() for column in columns], 1)
    new = torch.cat([torch.full_like(new[:, :1], count), new], 1)
    old = state.get(name, new[:0]).to(new.device)
    state[name] = torch.cat([old[old[:, 0] > count - window], new])
    state[f"{name}_batches"] = torch.tensor(float(count), dtype=torch.float64)
    return state[name][:, 1:]
