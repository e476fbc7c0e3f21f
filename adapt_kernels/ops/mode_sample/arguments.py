"""Checks of mode_sample's arguments, and their one form inside: tensors with one entry per row."""

from collections.abc import Mapping
from numbers import Integral
from typing import NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.philox import fresh_seed, row_seeds

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Rows(NamedTuple):
    """Arguments of N rows over V tokens and M modes; every tensor on the device of the logits."""

    logits: torch.Tensor  # [N, V]
    mode_ids: tuple[int | None, ...]
    at_mode: torch.Tensor  # [N] bool
    bias: torch.Tensor  # [N, M] float64
    temperature: torch.Tensor  # [N] float64
    top_k: torch.Tensor  # [N] int64
    top_p: torch.Tensor  # [N] float64
    min_p: torch.Tensor  # [N] float64
    seeds: torch.Tensor  # [N] int64
    step: torch.Tensor  # [N] int64
    only_modes: bool
    fast_prob: torch.Tensor  # [N] float64, NaN = none
    forced_tokens: torch.Tensor  # [N] int64, < 0 = draw

    def chunk(self, start: int, stop: int) -> "Rows":
        """Rows start to stop."""
        return self._replace(
            **{name: value[start:stop] for name, value in self._asdict().items() if torch.is_tensor(value)}
        )


def prepare(
    logits,
    modes,
    at_mode,
    mode_bias,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    step,
    only_modes,
    fast_prob,
    forced_tokens,
) -> Rows:
    """Checked `Rows`. Raises ValueError or TypeError naming the argument."""
    flat = _check_logits(logits)
    mode_ids = check_mode_ids(modes, flat.shape[1])
    row = _RowArgument(logits)
    at_mode = row("at_mode", False if at_mode is None else at_mode, torch.bool)
    if not mode_ids and (mode_bias is not None or fast_prob is not None or _holds(at_mode)):
        raise ValueError("at_mode, mode_bias and fast_prob need modes=; got modes=None")
    if mode_bias is not None and fast_prob is not None:
        raise ValueError("mode_bias and fast_prob both set P(mode): give one of them")
    rows = Rows(
        logits=flat,
        mode_ids=mode_ids,
        at_mode=at_mode,
        bias=_check_bias(row, mode_bias, modes, len(mode_ids)),
        temperature=row("temperature", temperature, torch.float64),
        top_k=row("top_k", top_k, torch.int64),
        top_p=row("top_p", top_p, torch.float64),
        min_p=row("min_p", min_p, torch.float64),
        seeds=_check_seeds(row, seeds),
        step=row("step", step, torch.int64),
        only_modes=bool(only_modes),
        fast_prob=row("fast_prob", float("nan") if fast_prob is None else fast_prob, torch.float64),
        forced_tokens=row("forced_tokens", -1 if forced_tokens is None else forced_tokens, torch.int64),
    )
    _check_ranges(rows)
    return rows


def check_mode_ids(modes, vocab_size: int) -> tuple[int | None, ...]:
    """The ids modes are decided on, checked against the vocabulary. Raises ValueError naming id and limit."""
    if modes is None:
        return ()
    ids = (
        modes.token_ids if isinstance(modes, Modes) else Modes({f"mode {i}": v for i, v in enumerate(modes)}).token_ids
    )
    for token_id in ids:
        if token_id is not None and token_id >= vocab_size:
            raise ValueError(f"mode token id {token_id} is outside the vocabulary of {vocab_size} tokens")
    return ids


class _RowArgument:
    """Turns a row argument into a tensor [N] on the device of the logits."""

    def __init__(self, logits: torch.Tensor):
        self.leading, self.device = logits.shape[:-1], logits.device
        self.count = self.leading.numel()

    def __call__(self, name: str, value, dtype: torch.dtype) -> torch.Tensor:
        value = _as_tensor(name, value, dtype)
        if value.ndim == 0:
            return value.to(self.device).expand(self.count)
        if value.shape == self.leading:
            return value.to(self.device).reshape(-1)
        if value.shape == self.leading[:1]:
            return value.to(self.device).reshape(-1, 1).expand(self.leading).reshape(-1)
        raise ValueError(
            f"{name} must be a scalar or have one entry per row, shape {tuple(self.leading)}; got {tuple(value.shape)}"
        )


def _as_tensor(name: str, value, dtype: torch.dtype) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor with one entry per row; got {value!r}") from error
    if not dtype.is_floating_point and tensor.is_floating_point():
        raise TypeError(f"{name} must hold integers or booleans; got {tensor.dtype}")
    if dtype == torch.bool and tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise TypeError(f"{name} must be boolean; got {value!r}")
    # A Python float keeps its 64 bits: through float32, p = 0.9 would already be another cut.
    if dtype.is_floating_point and not torch.is_tensor(value):
        tensor = torch.as_tensor(value, dtype=torch.float64)
    return tensor.to(dtype)


def _check_logits(logits) -> torch.Tensor:
    if not torch.is_tensor(logits) or logits.dtype not in _DTYPES:
        kind = logits.dtype if torch.is_tensor(logits) else type(logits).__name__
        raise TypeError(f"logits must be a float32, bfloat16, float16 or float64 tensor; got {kind}")
    if logits.ndim not in (2, 3) or logits.shape[-1] == 0:
        raise ValueError(f"logits must be [N, V] or [B, T, V] with V >= 1; got shape {tuple(logits.shape)}")
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        raise ValueError(f"logits must be contiguous in the last dimension (stride 1); got strides {logits.stride()}")
    return logits.reshape(-1, logits.shape[-1])


def _check_bias(row: _RowArgument, mode_bias, modes, num_modes: int) -> torch.Tensor:
    bias = torch.zeros(row.count, num_modes, dtype=torch.float64, device=row.device)
    if isinstance(mode_bias, Mapping):
        if not isinstance(modes, Modes):
            raise TypeError("mode_bias by name needs modes=Modes(...); got a plain sequence of ids")
        for name, value in mode_bias.items():
            bias[:, modes.index(name)] = row(f"mode_bias[{name!r}]", value, torch.float64)
    elif mode_bias is not None:
        value = _as_tensor("mode_bias", mode_bias, torch.float64)
        if value.ndim > 0 and value.shape == (*row.leading, num_modes):
            bias[:] = value.to(row.device).reshape(-1, num_modes)
        else:
            bias[:, 0] = row("mode_bias", value, torch.float64)
    return bias


def _check_seeds(row: _RowArgument, seeds) -> torch.Tensor:
    if seeds is None:
        seeds = fresh_seed()
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return row_seeds(int(seeds), row.count).to(row.device)
    seeds = _as_tensor("seeds", seeds, torch.int64)
    if seeds.ndim == 0:
        return _check_seeds(row, int(seeds))
    return row("seeds", seeds, torch.int64)


def _check_ranges(rows: Rows) -> None:
    _require("temperature", rows.temperature, rows.temperature >= 0, "a number >= 0 (0 = greedy)")
    _require("top_p", rows.top_p, (rows.top_p >= 0) & (rows.top_p <= 1), "in [0, 1]")
    _require("min_p", rows.min_p, (rows.min_p >= 0) & (rows.min_p <= 1), "in [0, 1]")
    _require("mode_bias", rows.bias, ~rows.bias.isnan(), "a number, not NaN")
    inside = ((rows.fast_prob > 0) & (rows.fast_prob < 1)) | rows.fast_prob.isnan()
    _require("fast_prob", rows.fast_prob, inside, "inside (0, 1)")
    vocab_size = rows.logits.shape[1]
    _require(
        "forced_tokens", rows.forced_tokens, rows.forced_tokens < vocab_size, f"below the vocabulary of {vocab_size}"
    )
    if _holds(~rows.fast_prob.isnan()) and not rows.only_modes:
        raise ValueError("fast_prob needs only_modes=True: it fixes P(mode 0) among the modes")


def _require(name: str, values: torch.Tensor, allowed: torch.Tensor, wanted: str) -> None:
    if values.device.type == "cpu" and not bool(allowed.all()):
        raise ValueError(f"{name} must be {wanted}; got {values[~allowed][0].item()}")


def _holds(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and bool(values.any())
