"""Signals of one decode step, computed from its logits."""

import math
from collections.abc import Iterable

import torch

from adapt_kernels.program.signals import Signal


def step_signals(signals: Iterable[Signal], logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """{name: float32 [n]} of the model's own distribution at T = 1; logits [n, V], NaN = -inf. All but "logp"."""
    wanted = [signal for signal in signals if signal.kind != "logp"]
    if not wanted:
        return {}
    logp = torch.log_softmax(logits.float().masked_fill(logits.isnan(), float("-inf")), -1)
    return {signal.name: _signal(signal, logp) for signal in wanted}


def _signal(signal: Signal, logp: torch.Tensor) -> torch.Tensor:
    if signal.kind in ("entropy", "certainty"):
        entropy = -(logp.exp() * logp).nan_to_num(nan=0.0).sum(1)  # 0 log 0 = 0
        return entropy if signal.kind == "entropy" else 1 - entropy / math.log(logp.shape[1])
    if signal.kind == "top1":
        return logp.amax(1).exp()
    if signal.kind == "conf":
        return -logp.topk(min(signal.top, logp.shape[1]), 1).values.mean(1)
    best = logp[:, list(signal.ids)].amax(1)
    if signal.kind == "margin":
        return logp.amax(1) - best
    return (logp > best[:, None]).sum(1).float() + 1
