"""Checks of policy_loss's arguments, and their one form inside."""

from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch

from adapt_kernels.ops.row_arguments import as_tensor, require
from adapt_kernels.ops.token_rows import TokenRows, row_tensor, token_rows

KIND_NONE, KIND_PPO, KIND_CISPO, KIND_REINFORCE = range(4)


class PolicySettings(NamedTuple):
    """Numbers every row shares."""

    clip_low: float
    clip_high: float
    dual_clip: float  # inf = off
    kl_coef: float
    entropy_coef: float


class PolicyRows(NamedTuple):
    """Checked arguments of N rows; every tensor but the logits is [N] and contiguous."""

    tokens: TokenRows
    old_logprobs: torch.Tensor  # float64
    advantages: torch.Tensor  # float64
    kinds: torch.Tensor | None  # int8; None = PPO
    weights: torch.Tensor | None  # float64; None = 1
    ref_logprobs: torch.Tensor | None  # float64; None = no KL term
    settings: PolicySettings


def prepare(
    logits,
    ids,
    old_logprobs,
    advantages,
    mask,
    kinds,
    weights,
    ref_logprobs,
    temperature,
    vocab_size=None,
    **settings,
) -> PolicyRows:
    """Checked `PolicyRows`; `vocab_size` if the logits are not all of it. Raises ValueError or TypeError."""
    tokens, leading = token_rows(logits, ids, mask, temperature, vocab_size), logits.shape[:-1]
    device = tokens.logits.device

    def row(name, value):
        return None if value is None else row_tensor(name, value, leading, device, torch.float64)

    for name, value in (("old_logprobs", old_logprobs), ("advantages", advantages)):
        if value is None:
            raise TypeError(f"{name} must be a number or a tensor with one entry per row; got None")
    if ref_logprobs is None and settings["kl_coef"]:
        raise ValueError(f"kl_coef={settings['kl_coef']} needs ref_logprobs; got None")
    return PolicyRows(
        tokens,
        row("old_logprobs", old_logprobs),
        row("advantages", advantages),
        _kinds(kinds, leading, device),
        row("weights", weights),
        row("ref_logprobs", ref_logprobs) if settings["kl_coef"] else None,
        _settings(**settings),
    )


def _kinds(kinds, leading, device) -> torch.Tensor | None:
    if kinds is None:
        return None
    given = as_tensor("kinds", kinds)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise TypeError(f"kinds must hold integers; got {given.dtype}")
    return row_tensor("kinds", kinds, leading, device, torch.int64, _check_kinds).to(torch.int8)


def _check_kinds(kinds) -> None:
    allowed = (kinds >= KIND_NONE) & (kinds <= KIND_REINFORCE)
    require("kinds", kinds, allowed, "0 (none), 1 (PPO), 2 (CISPO) or 3 (REINFORCE)")


def _settings(clip_low, clip_high, dual_clip, kl_coef, entropy_coef) -> PolicySettings:
    dual_clip = float("inf") if dual_clip is None else dual_clip
    given = PolicySettings(clip_low, clip_high, dual_clip, kl_coef, entropy_coef)
    for name, value in given._asdict().items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number; got {value!r}")
    require("clip_low", clip_low, 0 <= clip_low <= 1, "in [0, 1]")
    require("clip_high", clip_high, clip_high >= 0, "at least 0")
    require("dual_clip", dual_clip, dual_clip > 1, "above 1, or None to leave it out")
    for name in ("kl_coef", "entropy_coef"):
        value = getattr(given, name)
        require(name, value, -float("inf") < value < float("inf"), "finite")
    return PolicySettings(*map(float, given))


def check_gradient(logits, grad_out, grad_scale) -> None:
    """Raises unless a gradient times `grad_scale` can be written to `grad_out`."""
    if not isinstance(grad_scale, Real) or not 0 < float(grad_scale) < float("inf"):
        raise ValueError(f"grad_scale must be a number above 0 and finite; got {grad_scale!r}")
    if grad_out is None:
        return
    if not torch.is_tensor(grad_out):
        raise TypeError(f"grad_out must be a tensor or None; got {type(grad_out).__name__}")
    given, wanted = ((x.shape, x.dtype, x.device) for x in (grad_out, logits))
    if given != wanted:
        raise ValueError(f"grad_out must have the logits' shape, dtype and device {wanted}; got {given}")
    strides = [stride for size, stride in zip(grad_out.shape, grad_out.stride(), strict=True) if size > 1]
    nested = all(outer >= inner for outer, inner in pairwise([*strides, 1]))
    if (
        not nested
        or min(strides[:-1], default=grad_out.shape[-1]) < grad_out.shape[-1]
        or strides[-1:] not in ([], [1])
    ):
        raise ValueError(
            f"grad_out must be contiguous in the last dimension, its rows apart; got strides {grad_out.stride()}"
        )
