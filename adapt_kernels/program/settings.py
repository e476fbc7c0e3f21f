"""Sampling settings of each row under its sample rules, Mirostat's included."""

from collections.abc import Mapping

import torch

from adapt_kernels.ops.steer import Decision, SteerState

_FIELDS = {"temperature": torch.float64, "top_k": torch.int64, "top_p": torch.float64, "min_p": torch.float64}

# mu and the probabilities are float32: a token that lies on the cut stays.
_ROUNDING = 1 - 1e-6


def row_settings(compiled, state: SteerState, decision: Decision, call: Mapping, top1=None, zipf=None) -> dict:
    """temperature, top_k, top_p and min_p [slots]: the call's, or those of the sample rule that holds.

    call: the call's own, a number or [slots] each. top1 [slots]: the largest probability, for Mirostat's cut
    p >= 2**-mu. zipf [slots]: s of `zipf_exponent`, for its first form. Raises ValueError where one is missing.
    """
    slots, device = len(decision.sample), decision.sample.device
    settings = {name: _per_slot(call[name], slots, dtype, device) for name, dtype in _FIELDS.items()}
    for index, rule in enumerate(compiled.rules):
        own = {name: getattr(rule, name, None) for name in _FIELDS}
        holds = decision.sample == index
        if index in compiled.surprise:
            own |= _mirostat(rule, state.registers[:, compiled.surprise[index]].double(), compiled, top1, zipf)
        for name, value in own.items():
            if value is not None:
                settings[name] = torch.where(holds, _per_slot(value, slots, _FIELDS[name], device), settings[name])
    return settings


def _per_slot(value, slots: int, dtype, device) -> torch.Tensor:
    return torch.as_tensor(value, dtype=dtype, device=device).expand(slots)


def _mirostat(rule, mu, compiled, top1, zipf) -> dict:
    """Version 1 keeps the top k of Zipf's law, version 2 what surprises by mu bits at most, at least one token."""
    if rule.zipf:
        if zipf is None:
            raise ValueError("a sample rule with 'zipf' needs zipf=, the exponent of each row's distribution")
        return {"top_k": zipf_cut(mu, zipf.double(), len(compiled.tables.classes)), "top_p": 1.0, "min_p": 0.0}
    if top1 is None:
        raise ValueError("a sample rule with 'surprise' needs top1=, the largest probability of each row")
    cut = 2.0**-mu / top1.double()
    return {"top_k": 0, "top_p": 1.0, "min_p": (cut * _ROUNDING).clamp(max=1.0)}


def zipf_exponent(top: torch.Tensor) -> torch.Tensor:
    """Mirostat's estimate of s [n] from the largest log-probabilities `top` [n, m], descending.

    The least-squares slope through the origin of log p_i / p_(i+1) over log (i+1) / i.
    Source: arXiv 2007.14966 and the authors' code.
    """
    rank = torch.arange(1, top.shape[1], dtype=torch.float64, device=top.device)
    steps = torch.log((rank + 1) / rank)
    return ((top[:, :-1] - top[:, 1:]).double() * steps).sum(1) / (steps * steps).sum()


def zipf_cut(mu: torch.Tensor, s: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """k = round(((s - 1) 2^mu / (1 - n^(1 - s)))^(1 / s)) + 1 of n tokens, at most n: Mirostat's first form."""
    epsilon = s - 1
    k = ((epsilon * 2.0**mu) / (1 - vocab_size ** (-epsilon))) ** (1 / s)
    return (torch.nan_to_num(k, nan=1.0).round() + 1).clamp(1, vocab_size)
