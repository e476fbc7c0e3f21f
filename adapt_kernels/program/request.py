"""What one `generate` call asks of its modes: the user's arguments, checked, then spread over the rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.philox import fresh_seed, row_seeds
from adapt_kernels.program.balanced import balanced
from adapt_kernels.program.row_values import spread

# What `generate` of a patched model takes beside Hugging Face's own arguments.
MODE_ARGUMENTS = (
    *("mode", "mode_bias", "fast_prob", "seed", "rng", "return_logprobs", "compact_at", "kv_layout", "cuda_graph"),
)


class RowRequest(NamedTuple):
    """A request spread over rows = batch x num_return_sequences, in Hugging Face's order; CPU tensors."""

    gated: bool
    forced_mode: torch.Tensor  # [rows] int64, -1 = the model chooses
    bias: torch.Tensor  # [rows, M] float64
    fast_prob: torch.Tensor  # [rows] float64, NaN = none
    seeds: torch.Tensor | None  # [rows] int64; None = Hugging Face's generator

    def banned_bias(self, modes: Modes) -> torch.Tensor:
        """bias, with the listed modes at -inf where "any other token" is forced: it has no id to force."""
        if None not in modes.token_ids:
            return self.bias
        other = modes.token_ids.index(None)
        banned = (self.forced_mode == other)[:, None] & (torch.arange(len(modes)) != other)
        return self.bias.masked_fill(banned, float("-inf"))


@dataclass(frozen=True)
class ModeRequest:
    """The mode arguments of one `generate` call; see `ModeGenerate.generate` for their meaning."""

    modes: Modes
    mode: str | list | tuple | None = None
    mode_bias: object = None
    fast_prob: object = None
    seed: object = None
    rng: str | None = None
    return_logprobs: bool = False
    compact_at: float = 0.75
    kv_layout: str = "auto"
    cuda_graph: str | bool = False

    def __post_init__(self):
        """Everything that can be refused without knowing the batch."""
        object.__setattr__(self, "mode", _names(self.mode, self.modes))
        if self.mode_bias is not None and self.fast_prob is not None:
            raise ValueError("mode_bias and fast_prob both set P(mode): give one of them")
        if self._names_a_mode() and (self.mode_bias is not None or self.fast_prob is not None):
            other = "mode_bias" if self.mode_bias is not None else "fast_prob"
            raise ValueError(f"mode={self.mode!r} already decides the mode: leave out {other}, or use mode='auto'")
        if self.rng not in (None, "hf"):
            raise ValueError(f"rng must be None (a seeded stream per row) or 'hf'; got {self.rng!r}")
        if self.rng == "hf" and self.seed is not None:
            raise ValueError("seed belongs to the seeded stream: with rng='hf' call torch.manual_seed instead")
        named = [self.mode] if isinstance(self.mode, str) else self.mode or ()
        for name in (*named, *(self.mode_bias if isinstance(self.mode_bias, Mapping) else ())):
            if name not in ("auto", "balanced"):
                self.modes.index(name)
        if self.kv_layout not in ("auto", "rows", "shared"):
            raise ValueError(f"kv_layout must be 'auto', 'rows' or 'shared'; got {self.kv_layout!r}")
        if not isinstance(self.compact_at, Real) or not 0 <= self.compact_at <= 1:
            raise ValueError(f"compact_at must be a share of rows in [0, 1]; got {self.compact_at!r}")
        if not isinstance(self.cuda_graph, bool) and self.cuda_graph != "auto":
            raise ValueError(f"cuda_graph must be 'auto', True or False; got {self.cuda_graph!r}")
        if self.cuda_graph is True and self.kv_layout == "shared":
            raise ValueError("cuda_graph=True reads rows of their own, kv_layout='shared' has none: leave one out")

    @property
    def layout(self) -> str:
        """The layout that is asked for."""
        return "rows" if self.cuda_graph is True else self.kv_layout

    @property
    def gated(self) -> bool:
        """Whether the first token is restricted to the modes."""
        return not (self.mode is None and self.mode_bias is None and self.fast_prob is None)

    def given_arguments(self) -> list[str]:
        """Names of the arguments that only a sampling plan of ours can honour."""
        names = ("mode", "mode_bias", "fast_prob", "seed")
        return [
            *(name for name in names if getattr(self, name) is not None),
            *["return_logprobs"] * self.return_logprobs,
            *["kv_layout"] * (self.kv_layout == "shared"),
            *["cuda_graph"] * (self.cuda_graph is True),
        ]

    def spread(self, batch: int, samples: int, random: bool, prompts=None) -> RowRequest:
        """Per-row values for `batch` prompts with `samples` rows each. Raises ValueError for a wrong row count.

        random: whether anything is drawn; a greedy call leaves torch's generator alone. prompts [batch] int64: equal
            numbers for equal prompts (see `prompts.prompt_of_row`), or None.
        """
        rows = batch * samples
        bias = torch.zeros(rows, len(self.modes), dtype=torch.float64)
        if isinstance(self.mode_bias, Mapping):
            for name, value in self.mode_bias.items():
                bias[:, self.modes.index(name)] = _per_row(f"mode_bias[{name!r}]", value, batch, samples)
        elif self.mode_bias is not None:
            bias[:, 0] = _per_row("mode_bias", self.mode_bias, batch, samples)
        if bias.isnan().any():
            raise ValueError("mode_bias must be a number, not NaN")
        fast_prob = torch.full((rows,), float("nan"), dtype=torch.float64)
        if self.fast_prob is not None:
            fast_prob = _per_row("fast_prob", self.fast_prob, batch, samples)
            outside = fast_prob[~((fast_prob > 0) & (fast_prob < 1))]
            if len(outside):
                raise ValueError(f"fast_prob must be inside (0, 1); got {outside[0].item()}")
        forced = self._forced_modes(batch, samples, prompts)
        # Last: a refused call must not have moved torch's generator.
        seed = 0 if self.seed is None and not random else self.seed
        seeds = None if self.rng == "hf" else _row_seeds(seed, batch, samples)
        return RowRequest(self.gated, forced, bias, fast_prob, seeds)

    def _names_a_mode(self) -> bool:
        if self.mode is None or self.mode == "auto":
            return False
        if isinstance(self.mode, str):
            return True
        if not isinstance(self.mode, (list, tuple)):
            raise TypeError(f"mode must be 'auto', 'balanced', a mode name or a list of names; got {self.mode!r}")
        return any(name != "auto" for name in self.mode)

    def _forced_modes(self, batch: int, samples: int, prompts) -> torch.Tensor:
        rows = batch * samples
        if self.mode is None or self.mode == "auto":
            return torch.full((rows,), -1)
        if self.mode == "balanced" and samples == 1 and prompts is not None:
            return _balanced_groups(len(self.modes), prompts)
        if self.mode == "balanced":
            return _balanced(len(self.modes), samples).repeat(batch)
        if isinstance(self.mode, str):
            return torch.full((rows,), self.modes.index(self.mode))
        index = torch.tensor([-1 if name == "auto" else self.modes.index(name) for name in self.mode])
        return spread("mode", index, batch, samples)


def _names(mode, modes: Modes):
    """mode, with a list of names for an array, tensor or Series of names or of mode indices."""
    if not hasattr(mode, "tolist"):
        return mode
    if getattr(mode, "ndim", 1) > 1:
        raise ValueError(f"mode must be one name, or one per row; got shape {tuple(mode.shape)}")
    values, last = mode.tolist(), len(modes) - 1
    if not isinstance(values, list):
        return values
    indices = [isinstance(value, Integral) and not isinstance(value, bool) for value in values]
    for value in (v for v, is_index in zip(values, indices, strict=True) if is_index):
        if not 0 <= value <= last:
            raise ValueError(f"mode indices must lie in [0, {last}]; got {value} (for rows that choose: names, 'auto')")
    return [modes.names[v] if is_index else v for v, is_index in zip(values, indices, strict=True)]


def _balanced(num_modes: int, samples: int) -> torch.Tensor:
    if samples < max(2, num_modes):
        raise ValueError(
            f"mode='balanced' splits each prompt's samples over {num_modes} modes:"
            f" num_return_sequences must be at least {max(2, num_modes)}; got {samples}"
            " (a prompt may also come as so many equal rows)"
        )
    return torch.tensor(balanced(num_modes, samples))


def _balanced_groups(num_modes: int, prompts) -> torch.Tensor:
    """The same split for groups that come as equal rows, wherever those stand."""
    forced = torch.empty_like(prompts)
    for prompt in prompts.unique():
        rows = (prompts == prompt).nonzero()[:, 0]
        forced[rows] = _balanced(num_modes, len(rows))
    return forced


def _per_row(name: str, value, batch: int, samples: int) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or one number per row; got {value!r}") from error
    return spread(name, tensor, batch, samples)


def _row_seeds(seed, batch: int, samples: int) -> torch.Tensor:
    if seed is None:
        seed = fresh_seed()
    if torch.is_tensor(seed):
        if seed.is_floating_point() or seed.dtype == torch.bool:
            raise TypeError(f"seed must hold integers; got {seed.dtype}")
        if seed.ndim > 1:
            return spread("seed", seed, batch, samples)
    if hasattr(seed, "tolist"):
        seed = seed.tolist()
    if not isinstance(seed, (list, tuple)):
        return row_seeds(_checked_seed(seed), batch * samples)
    seeds = [_checked_seed(s) for s in seed]
    if len(seeds) == batch and samples > 1:
        # A repeated seed would make a prompt's samples identical.
        return torch.cat([row_seeds(s, samples) for s in seeds])
    values = torch.cat([row_seeds(s, 1) for s in seeds] or [torch.empty(0, dtype=torch.int64)])
    return spread("seed", values, batch, samples)


def _checked_seed(seed) -> int:
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer or one integer per row; got {seed!r}")
    return int(seed)
