"""Checks shared by the ops that score one given token per row, and their arguments' one form inside."""

from numbers import Real
from typing import NamedTuple

import torch

from adapt_kernels.ops.row_arguments import as_tensor, check_logits, checked_rows, require

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TokenRows(NamedTuple):
    """Checked arguments of N = B x T rows over V tokens, each with one token to score."""

    logits: torch.Tensor  # [B, T, V], any strides but a contiguous last dimension
    ids: torch.Tensor  # [N] int64, contiguous
    mask: torch.Tensor | None  # [N] bool, contiguous; None = every row counts
    temperature: float
    temperature_rows: torch.Tensor | None  # [N] float64, contiguous; stands in for `temperature`

    @property
    def count(self) -> int:  # type: ignore[override]  # nobody counts entries of this tuple
        """N."""
        return self.logits.shape[0] * self.logits.shape[1]

    @property
    def result_dtype(self) -> torch.dtype:
        """Of log-probs and losses: float64 for float64 logits, else float32."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32


def token_rows(logits, ids, mask, temperature, vocab_size=None) -> TokenRows:
    """Checked `TokenRows`. Raises ValueError or TypeError naming the argument; looks only at values on the host."""
    check_logits(logits)
    vocab_size = vocab_size or logits.shape[-1]
    leading = logits.shape[:-1]
    ids = _ids(ids, leading, logits.device)
    mask = mask_rows(mask, leading, logits.device)
    rows = None
    if isinstance(temperature, Real):
        temperature = float(temperature)
    else:
        rows = row_tensor("temperature", temperature, leading, logits.device, torch.float64, _check_temperature)
        temperature = 1.0
    _check_temperature(temperature)
    inside = (ids >= 0) & (ids < vocab_size)
    wanted = f"in [0, {vocab_size}) where the mask is true"
    require("ids", ids, inside if mask is None else inside | ~mask, wanted)
    return TokenRows(logits if logits.ndim == 3 else logits.unsqueeze(1), ids, mask, temperature, rows)


def _check_temperature(value) -> None:
    require("temperature", value, (value > 0) & (value < float("inf")), "above 0 and finite")


def row_tensor(
    name: str, value, leading: torch.Size, device: torch.device, dtype: torch.dtype, check=lambda value: None
) -> torch.Tensor:
    """A number or a tensor of shape `leading` (or [B] for [B, T]) as a contiguous [N] tensor of `dtype`.

    check: of the value before it goes to the device, where the host cannot see it.
    """
    if isinstance(value, (int, float)):
        check(value)
        return torch.full((leading.numel(),), value, dtype=dtype, device=device)
    if torch.is_tensor(value):
        _same_device(name, value, device)
    # Numbers keep their 64 bits, as a single one does.
    value = as_tensor(name, value, torch.float64 if dtype.is_floating_point else None)
    if value.is_complex():
        raise TypeError(f"{name} must hold real numbers; got {value.dtype}")
    check(value)
    value = value.detach().to(device=device, dtype=dtype)
    return checked_rows(name, value, leading).contiguous()


def mask_rows(mask, leading: torch.Size, device: torch.device) -> torch.Tensor | None:
    """`mask` as [N] bool."""
    if mask is None:
        return None
    if torch.is_tensor(mask):
        _same_device("mask", mask, device)
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool:
        require("mask", mask, (mask == 0) | (mask == 1), "boolean, or 0 and 1")
        mask = mask != 0
    if mask.shape != leading:
        raise ValueError(f"mask must have the shape {tuple(leading)} of the rows; got {tuple(mask.shape)}")
    return mask.to(device).reshape(-1).contiguous()


def _ids(ids, leading: torch.Size, device: torch.device) -> torch.Tensor:
    if not torch.is_tensor(ids) or ids.dtype not in _INTEGERS:
        kind = ids.dtype if torch.is_tensor(ids) else type(ids).__name__
        raise TypeError(f"ids must be an integer tensor; got {kind}")
    if ids.shape != leading:
        raise ValueError(f"ids must have the shape {tuple(leading)} of the rows of logits; got {tuple(ids.shape)}")
    _same_device("ids", ids, device)
    return ids.long().reshape(-1).contiguous()


def _same_device(name: str, value: torch.Tensor, device: torch.device) -> None:
    if value.device != device and value.ndim > 0:
        raise ValueError(f"{name} must be on the device of logits, {device}; got {value.device}")
