"""The loss of one row as a function of its log-prob and entropy, with its slopes: `csrc/include/adapt/policy_term.h` in
plain torch, float64. What is V wide is not in here.
"""

from typing import NamedTuple

import torch

from adapt_kernels.ops.policy_loss.arguments import KIND_CISPO, KIND_NONE, KIND_PPO, PolicyRows

MAX_LOG_RATIO = 20.0


class PolicyTerms(NamedTuple):
    """Per row, [N] float64: the weighted loss, its derivatives, and what is reported about it."""

    loss: torch.Tensor
    logprob_slope: torch.Tensor
    entropy_slope: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor


def policy_terms(logprobs, entropy, rows: PolicyRows) -> PolicyTerms:
    """Terms of every row. A row that is masked, of weight 0 or of advantage 0 has policy term and slope exactly 0."""
    log_ratio = logprobs - rows.old_logprobs
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    policy, slope, clipped = _policy(logprobs, log_ratio, ratio, rows)
    loss = policy - rows.settings.entropy_coef * entropy if rows.settings.entropy_coef else policy
    if rows.ref_logprobs is not None:
        gap = rows.ref_logprobs - logprobs
        kept = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        loss = loss + rows.settings.kl_coef * (kept.expm1() - kept)
        slope = slope - rows.settings.kl_coef * torch.where(gap.abs() > MAX_LOG_RATIO, 0.0, kept.expm1())
    mask = rows.tokens.mask
    weight = torch.ones_like(logprobs) if rows.weights is None else rows.weights
    counts = weight != 0 if mask is None else (weight != 0) & mask

    def weighted(value):
        return torch.where(counts, weight * value, 0.0)

    entropy_slope = weighted(torch.full_like(logprobs, -rows.settings.entropy_coef))
    if mask is not None:
        ratio, clipped = torch.where(mask, ratio, 1.0), clipped & mask
    return PolicyTerms(weighted(loss), weighted(slope), entropy_slope, ratio, clipped)


def _policy(logprobs, log_ratio, ratio, rows: PolicyRows):
    """Unweighted policy loss, its derivative, and whether the row is clipped. On an edge the gradient still flows."""
    low, high, dual_clip, _, _ = rows.settings
    advantages = rows.advantages
    kinds = torch.full_like(advantages, KIND_PPO, dtype=torch.int8) if rows.kinds is None else rows.kinds
    bounded = ratio.clamp(1 - low, 1 + high)

    plain, limited = -advantages * ratio, -advantages * bounded
    ceiling = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
    ppo_clipped = (limited > plain) | (torch.maximum(plain, limited) > ceiling)
    ppo = torch.minimum(torch.maximum(plain, limited), ceiling)
    ppo_slope = torch.where(ppo_clipped | (log_ratio.abs() > MAX_LOG_RATIO), 0.0, plain)

    is_ppo, is_cispo = kinds == KIND_PPO, kinds == KIND_CISPO
    score = torch.where(is_cispo, bounded * advantages, advantages)
    loss, slope = torch.where(is_ppo, ppo, -score * logprobs), torch.where(is_ppo, ppo_slope, -score)
    clipped = torch.where(is_ppo, ppo_clipped, is_cispo & (bounded != ratio))
    # 0 * inf is NaN: an advantage of 0 must not depend on the log-prob.
    nothing = (advantages == 0) | (kinds == KIND_NONE)
    return loss.masked_fill(nothing, 0.0), slope.masked_fill(nothing, 0.0), clipped & ~nothing
