"""Log-probs, policy loss and its gradient of one row at a time, in NumPy float64, straight from the formulas."""

import math

import numpy as np
import torch

LOW, HIGH, DUAL = 0.2, 0.28, 3.0


def row_distribution(x, temperature):
    """(log-probs, probabilities, entropy) of one row; NaN without a distribution."""
    y = np.asarray(x, np.float64) / temperature
    if np.isnan(y).any() or y.max() in (np.inf, -np.inf):
        nan = np.full_like(y, np.nan)
        return nan, nan, np.nan
    y = y - y.max()
    log_p = y - math.log(np.exp(y).sum())
    p = np.exp(log_p)
    return log_p, p, -sum(q * lq for q, lq in zip(p[p > 0], log_p[p > 0], strict=True))


def row_loss(logp, entropy, old, advantage, kind, weight=1.0, ref=None, kl_coef=0.0, entropy_coef=0.0, dual=DUAL):
    """(loss, d loss / d logp, d loss / d entropy, ratio, clipped)."""
    log_ratio = logp - old
    inside = abs(log_ratio) <= 20
    ratio = math.exp(min(max(log_ratio, -20), 20))
    bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
    loss, slope, clipped = 0.0, 0.0, False
    if kind == 1 and advantage:
        candidates = [(-advantage * ratio, False), (-advantage * bounded, True)]
        loss, clipped = max(candidates, key=lambda pair: (pair[0], not pair[1]))
        if advantage < 0 and -advantage * dual < loss:
            loss, clipped = -advantage * dual, True
        slope = 0.0 if clipped or not inside else -advantage * ratio
    elif kind == 2 and advantage:
        loss, slope, clipped = -advantage * bounded * logp, -advantage * bounded, bounded != ratio
    elif kind == 3 and advantage:
        loss, slope = -advantage * logp, -advantage
    if ref is not None and kl_coef:
        d = min(max(ref - logp, -20), 20)
        loss += kl_coef * (math.exp(d) - d - 1)
        slope -= kl_coef * (math.exp(d) - 1) * (abs(ref - logp) <= 20)
    loss -= entropy_coef * entropy
    if weight == 0:
        return 0.0, 0.0, 0.0, ratio, clipped
    return weight * loss, weight * slope, -weight * entropy_coef, ratio, clipped


def row_gradient(x, token, temperature, slope, entropy_slope):
    """d loss / d x."""
    log_p, p, entropy = row_distribution(x, temperature)
    finite = np.where(p > 0, log_p, 0)
    target = np.zeros_like(p)
    target[token] = 1
    return (slope * (target - p) - entropy_slope * p * (finite + entropy)) / temperature


def spacing(value, dtype):
    """One unit in the last place of `dtype` at |value|."""
    value = torch.tensor(abs(float(value))).to(dtype)
    return float(torch.nextafter(value, torch.tensor(math.inf, dtype=dtype)).double() - value.double())
