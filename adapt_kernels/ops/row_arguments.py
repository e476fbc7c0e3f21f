"""Arguments with one entry per row, of any op: the one check of their shapes and values."""

import torch

_LOGITS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_logits(logits) -> None:
    """Raises unless `logits` is a tensor [N, V] or [B, T, V] that every backend can read in place."""
    if not torch.is_tensor(logits) or logits.dtype not in _LOGITS:
        kind = logits.dtype if torch.is_tensor(logits) else type(logits).__name__
        raise TypeError(f"logits must be a float32, bfloat16, float16 or float64 tensor; got {kind}")
    if logits.ndim not in (2, 3) or logits.shape[-1] == 0:
        raise ValueError(f"logits must be [N, V] or [B, T, V] with V >= 1; got shape {tuple(logits.shape)}")
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        raise ValueError(
            f"logits must be contiguous in the last dimension (stride 1); got strides {logits.stride()}; "
            "call .contiguous() first"
        )


def as_tensor(name: str, value, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor as it is; anything else as a tensor of `dtype`. Raises TypeError for what is no numbers."""
    if torch.is_tensor(value):
        return value
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor with one entry per row; got {value!r}") from error


def per_row(values: torch.Tensor, leading: torch.Size) -> torch.Tensor | None:
    """[N] entries of a scalar, of `leading` = [N] or [B, T], or of [B] for [B, T]; None for any other shape."""
    if values.ndim == 0:
        return values.expand(leading.numel())
    if values.shape == leading:
        return values.reshape(-1)
    if values.shape == leading[:1]:
        return values.reshape(-1, 1).expand(leading).reshape(-1)
    return None


def checked_rows(name: str, values: torch.Tensor, leading: torch.Size) -> torch.Tensor:
    """`per_row`, or a ValueError."""
    rows = per_row(values, leading)
    if rows is None:
        raise ValueError(
            f"{name} must be a scalar or have one entry per row, shape {tuple(leading)}; got {tuple(values.shape)}"
        )
    return rows


def require(name: str, values, allowed, wanted: str) -> None:
    """Raises ValueError where a value that is on the host is not allowed; no sync, and no branch in a traced graph."""
    if not torch.is_tensor(values):
        if not allowed:
            raise ValueError(f"{name} must be {wanted}; got {values}")
    elif not torch.compiler.is_compiling() and values.device.type == "cpu" and not bool(allowed.all()):
        raise ValueError(f"{name} must be {wanted}; got {values[~allowed][0].item()}")
