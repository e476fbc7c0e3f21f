"""Arguments of a call that have one value for all rows, one per row, or one per prompt."""

import torch


def entry_of_row(name: str, shape: tuple[int, ...], batch: int, samples: int) -> torch.Tensor:
    """[rows] int64: which entry of an argument of this shape each of the batch x samples rows takes.

    () is one for all rows. Raises ValueError that names the argument.
    """
    rows = batch * samples
    if shape == ():
        return torch.zeros(rows, dtype=torch.int64)
    if shape == (rows,):
        return torch.arange(rows)
    if shape == (batch,):
        return torch.arange(batch).repeat_interleave(samples)
    per_prompt = f", or one per prompt ({batch})" if samples > 1 else ""
    raise ValueError(
        f"{name} must be one value, or one per row ({rows} = {batch} prompts x {samples} samples){per_prompt};"
        f" got shape {shape}"
    )


def spread(name: str, values: torch.Tensor, batch: int, samples: int) -> torch.Tensor:
    """[rows] of a tensor of any of the three shapes."""
    return values.flatten()[entry_of_row(name, tuple(values.shape), batch, samples)]


def spread_list(name: str, values, batch: int, samples: int) -> list:
    """The same of a list, or of one value that is none."""
    if not isinstance(values, (list, tuple)):
        return [values] * (batch * samples)
    return [values[entry] for entry in entry_of_row(name, (len(values),), batch, samples).tolist()]
