"""Checks of mode_sample's arguments, and their one form inside: a number for all rows, or a tensor of one per row."""

from collections.abc import Mapping
from numbers import Integral, Real
from operator import attrgetter
from typing import NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.ops.mode_sample.classes import check_class_edits, check_classes
from adapt_kernels.ops.row_arguments import as_tensor, check_logits, checked_rows, require
from adapt_kernels.philox import check_seed, fresh_seed, row_seeds

# In the order in which the kernels take them. A number for all rows, or a tensor of one entry per row.
ROW_ARGUMENTS = {
    "temperature": torch.float64,
    "top_k": torch.int64,
    "top_p": torch.float64,
    "min_p": torch.float64,
    "at_mode": torch.bool,
    "seeds": torch.int64,
    "step": torch.int64,
    "fast_prob": torch.float64,
    "forced_tokens": torch.int64,
}
# Their values in a `Rows`, in one call: on every decode step.
row_values = attrgetter(*ROW_ARGUMENTS)
_KINDS = {torch.float64: float, torch.int64: int, torch.bool: bool}
_NUMBERS, _INTEGERS = (float, int, bool), (int, bool)
_LEAST, _MOST = -(2**63), 2**63 - 1


class Rows(NamedTuple):
    """Checked arguments of N = B x T rows over V tokens and M modes.

    A row argument is a Python number, the same for all rows, or a tensor [N] on the device of the logits.
    """

    logits: torch.Tensor  # [B, T, V], any strides but a contiguous last dimension
    mode_ids: tuple[int | None, ...]
    at_mode: bool | torch.Tensor
    bias: torch.Tensor | None  # [N, M] float64; None = no bias
    temperature: float | torch.Tensor
    top_k: int | torch.Tensor
    top_p: float | torch.Tensor
    min_p: float | torch.Tensor
    seeds: int | torch.Tensor | None  # int s: row i uses row_seed(s, i); None = a fresh one
    step: int | torch.Tensor
    only_modes: bool
    fast_prob: float | torch.Tensor  # NaN = none
    forced_tokens: int | torch.Tensor  # < 0 = draw
    token_classes: torch.Tensor | None = None  # [V or less] uint8; None = no edits by class
    class_scale: torch.Tensor | None = None  # [N, E] float32
    class_bias: torch.Tensor | None = None  # [N, E] float32

    @property
    def count(self) -> int:  # type: ignore[override]  # nobody counts entries of this tuple
        """N."""
        return self.logits.shape[0] * self.logits.shape[1]

    def expanded(self) -> "RowTensors":
        """The same rows with logits [N, V] and every row argument a tensor [N]."""
        device, count = self.logits.device, self.count
        fields = self._asdict()
        if not torch.is_tensor(self.seeds):
            fields["seeds"] = row_seeds(fresh_seed() if self.seeds is None else self.seeds, count).to(device)
        for name, dtype in ROW_ARGUMENTS.items():
            if not torch.is_tensor(fields[name]):
                fields[name] = torch.full((count,), fields[name], dtype=dtype, device=device)
        if self.bias is None:
            fields["bias"] = torch.zeros(count, len(self.mode_ids), dtype=torch.float64, device=device)
        fields["logits"] = self.logits.reshape(count, self.logits.shape[-1])
        return RowTensors(**fields)


class RowTensors(NamedTuple):
    """`Rows` whose logits are [N, V] and whose row arguments are tensors [N] each."""

    logits: torch.Tensor
    mode_ids: tuple[int | None, ...]
    at_mode: torch.Tensor
    bias: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    step: torch.Tensor
    only_modes: bool
    fast_prob: torch.Tensor
    forced_tokens: torch.Tensor
    token_classes: torch.Tensor | None
    class_scale: torch.Tensor | None
    class_bias: torch.Tensor | None

    def chunk(self, start: int, stop: int) -> "RowTensors":
        """Rows start to stop."""
        shared = ("mode_ids", "only_modes", "token_classes")
        parts = self._asdict().items()
        return RowTensors(
            **{name: value if name in shared or value is None else value[start:stop] for name, value in parts}
        )


# What each may be, for a number or a tensor, and in words.
_RANGES = {
    "mode_bias": (lambda x: x == x, "a number, not NaN"),
    "temperature": (lambda x: x >= 0, "a number >= 0 (0 = greedy)"),
    "top_p": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "min_p": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "fast_prob": (lambda x: ((x > 0) & (x < 1)) | (x != x), "inside (0, 1)"),
}
ClassEdits = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
_NEEDS_MODES = "at_mode, mode_bias and fast_prob need modes=; got modes=None"


def prepare(
    logits, modes, mode_bias, seeds, only_modes, class_edits: ClassEdits = (None, None, None), **row_arguments
) -> Rows:
    """`Rows` of checked types and shapes, by operations that torch.compile can trace; `check_values` is still to come.

    Raises ValueError or TypeError naming the argument.
    """
    check_logits(logits)
    mode_ids = _check_mode_ids(modes, logits.shape[-1])
    row = _RowArgument(logits)
    values = {name: row(name, value, ROW_ARGUMENTS[name]) for name, value in row_arguments.items()}
    has_fast_prob = torch.is_tensor(values["fast_prob"]) or values["fast_prob"] == values["fast_prob"]
    if not mode_ids and (mode_bias is not None or has_fast_prob or values["at_mode"] is True or row.some_at_mode):
        raise ValueError(_NEEDS_MODES)
    if mode_bias is not None and has_fast_prob:
        raise ValueError("mode_bias and fast_prob both set P(mode): give one of them")
    if has_fast_prob and not only_modes:
        raise ValueError("fast_prob needs only_modes=True: it fixes P(mode 0) among the modes")
    return Rows(
        logits=logits if logits.ndim == 3 else logits.unsqueeze(1),
        mode_ids=mode_ids,
        bias=_check_bias(row, mode_bias, modes, len(mode_ids)),
        seeds=_check_seeds(row, seeds),
        only_modes=bool(only_modes),
        **check_class_edits(*class_edits, row.count, logits),
        **values,
    )


class _RowArgument:
    """Turns a row argument into a Python number or a tensor [N] on the device of the logits."""

    def __init__(self, logits: torch.Tensor):
        shape = logits.shape
        self.leading, self.device = shape[:-1], logits.device
        self.count, self._vocab_size = self.leading.numel(), shape[-1]
        self.some_at_mode = False  # as far as the host can see

    def __call__(self, name: str, value, dtype: torch.dtype):
        # The exact types first: isinstance of an abstract class costs ten times as much, on every decode step.
        kind = _KINDS[dtype]
        if type(value) is kind and (kind is not int or _LEAST <= value <= _MOST):  # type: ignore[operator]  # narrowed to object
            return value
        if type(value) in _NUMBERS or isinstance(value, Real):
            return _number(name, value, dtype)
        tensor = _as_tensor(name, value, dtype)
        self.check_before_moving(name, tensor)
        if tensor.ndim == 0:
            if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
                return _number(name, tensor.item(), dtype)
            return tensor.to(self.device).expand(self.count)
        return checked_rows(name, tensor.to(self.device), self.leading)

    def check_before_moving(self, name: str, values: torch.Tensor) -> None:
        """What the host can see no longer once `values` are on the device of the logits."""
        if values.device.type != "cpu" or self.device.type == "cpu" or torch.compiler.is_compiling():
            return
        if name == "at_mode":
            _check_booleans(values)
            self.some_at_mode = bool(values.any())
        elif name == "forced_tokens":
            _check_forced(values, self._vocab_size)
        elif (bounds := _RANGES.get(base := name.partition("[")[0])) is not None:
            _check_range(base, values, bounds)


def _check_booleans(at_mode: torch.Tensor) -> None:
    if at_mode.dtype != torch.bool and not ((at_mode == 0) | (at_mode == 1)).all():
        raise TypeError(f"at_mode must be boolean; got {at_mode}")


def _check_range(name: str, value, bounds) -> None:
    allowed, wanted = bounds
    good = allowed(value)
    if good is not True:  # a number in range costs no more, on every decode step
        require(name, value, good, wanted)


def _check_forced(forced, vocab_size: int) -> None:
    good = forced < vocab_size
    if good is not True:
        require("forced_tokens", forced, good, f"below the vocabulary of {vocab_size}")


def _number(name: str, value, dtype: torch.dtype):
    if dtype == torch.bool and value not in (0, 1):
        raise TypeError(f"{name} must be boolean; got {value!r}")
    if dtype == torch.int64 and type(value) not in _INTEGERS and not isinstance(value, Integral):
        raise TypeError(f"{name} must hold integers; got the {type(value).__name__} {value!r}")
    if dtype == torch.int64 and name != "seeds" and not _LEAST <= value <= _MOST:
        raise ValueError(f"{name} must fit 64 bits; got {value!r}")
    return _KINDS[dtype](value)


def _as_tensor(name: str, value, dtype: torch.dtype) -> torch.Tensor:
    # Python floats keep their 64 bits: through float32, p = 0.9 would already be another cut.
    tensor = as_tensor(name, value, torch.float64 if dtype.is_floating_point else None)
    if not dtype.is_floating_point and tensor.is_floating_point():
        raise TypeError(f"{name} must hold integers or booleans; got {tensor.dtype}")
    # Numbers in place of booleans are looked at by `check_values`.
    return tensor if dtype == torch.bool else tensor.to(dtype)


def _check_mode_ids(modes, vocab_size: int) -> tuple[int | None, ...]:
    if modes is None:
        return ()
    if not isinstance(modes, Modes):
        modes = Modes({f"mode {i}": token_id for i, token_id in enumerate(modes)})
    for token_id in modes.token_ids:
        if token_id is not None and token_id >= vocab_size:
            raise ValueError(f"mode token id {token_id} is outside the vocabulary of {vocab_size} tokens")
    return modes.token_ids


def _check_bias(row: _RowArgument, mode_bias, modes, num_modes: int) -> torch.Tensor | None:
    if mode_bias is None:
        return None
    bias = torch.zeros(row.count, num_modes, dtype=torch.float64, device=row.device)
    if isinstance(mode_bias, Mapping):
        if not isinstance(modes, Modes):
            raise TypeError("mode_bias by name needs modes=Modes(...); got a plain sequence of ids")
        for name, value in mode_bias.items():
            bias[:, modes.index(name)] = _bias_of_rows(row, f"mode_bias[{name!r}]", value)
    else:
        value = mode_bias if isinstance(mode_bias, Real) else _as_tensor("mode_bias", mode_bias, torch.float64)
        if torch.is_tensor(value) and value.ndim > 0 and value.shape == (*row.leading, num_modes):
            row.check_before_moving("mode_bias", value)
            bias[:] = value.to(row.device).reshape(-1, num_modes)
        else:
            bias[:, 0] = _bias_of_rows(row, "mode_bias", value)
    return bias


def _bias_of_rows(row: _RowArgument, name: str, value):
    value = row(name, value, torch.float64)
    if not torch.is_tensor(value):
        _check_range(name, value, _RANGES["mode_bias"])
    return value


def _check_seeds(row: _RowArgument, seeds):
    if seeds is None:
        return None
    seeds = row("seeds", seeds, torch.int64)
    if not torch.is_tensor(seeds):
        check_seed(seeds)
        return seeds - 2**64 if seeds >= 2**63 else seeds  # the same 64 bits as int64
    return seeds


def check_values(rows: Rows) -> Rows:
    """The same rows with boolean `at_mode` and a seed, once the values that the host can see are in range.

    Raises ValueError or TypeError naming the argument.
    """
    at_mode, vocab_size = rows.at_mode, rows.logits.shape[-1]
    if torch.is_tensor(at_mode):
        on_host = at_mode.device.type == "cpu"
        if on_host:
            _check_booleans(at_mode)
        at_mode = at_mode.bool()
        if not rows.mode_ids and on_host and at_mode.any():
            raise ValueError(_NEEDS_MODES)
    if rows.bias is not None:
        _check_range("mode_bias", rows.bias, _RANGES["mode_bias"])
    check_classes(rows.token_classes, rows.class_bias)
    for name in ("temperature", "top_p", "min_p", "fast_prob"):
        _check_range(name, getattr(rows, name), _RANGES[name])
    _check_forced(rows.forced_tokens, vocab_size)
    if at_mode is rows.at_mode and rows.seeds is not None:
        return rows
    return rows._replace(at_mode=at_mode, seeds=fresh_seed() if rows.seeds is None else rows.seeds)
