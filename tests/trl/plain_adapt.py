"""The methods in plain float64 loops over sequences and tokens: what the trainer is compared with."""

import math
import statistics

import torch

# scheme: (mode loss, response loss, upper clip, dual clip, forced old log-prob is log(1/M), margin, normaliser)
METHODS = {
    "separate": ("cispo", "ppo", 0.28, 3.0, False, 0.05, "tokens"),
    "reference": ("cispo", "ppo", 0.28, 3.0, True, 0.0, "tokens"),
    "degrpo": ("ppo", "ppo", 0.2, None, False, 0.0, "two means"),
    "adaptthink": ("ppo", "ppo", 0.2, None, True, 0.0, "sequences"),
    "adacot": ("ppo", "ppo", 0.2, None, False, 0.0, "tokens"),
    "ada_grpo": ("ppo", "ppo", 0.2, None, False, 0.0, "tokens"),
    "avr": ("ppo", "ppo", 0.2, None, False, 0.0, "tokens"),
    "length_penalty": ("ppo", "ppo", 0.2, None, False, 0.0, "tokens"),
    "grpo": ("ppo", "ppo", 0.2, None, False, 0.0, "tokens"),
}


def advantages(scheme, group, progress, max_length):
    """[(mode token's, response's)] of one group: dicts of outcome, correct, length, mode (0 = fast) and before."""
    right = [[x["correct"] for x in group if x["mode"] == mode] for mode in (0, 1)]
    fast, slow = (sum(found) / len(found) if found else 0.0 for found in right)
    outcomes = [x["outcome"] for x in group]
    if scheme in ("separate", "reference"):
        bonus = [0.25 + 0.5 * slow - fast if x["mode"] == 1 else 0.0 for x in group]
        return (_separate if scheme == "separate" else _reference)(group, outcomes, bonus)
    if scheme == "degrpo":
        scores = [(0.5 if x["mode"] else 1.0) if x["correct"] else -1.0 for x in group]
        return [(score - statistics.fmean(scores),) * 2 for score in scores]
    if scheme == "adaptthink":
        return [(x["correct"] - x["before"] + 0.05 * (x["mode"] == 0),) * 2 for x in group]
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    shares = [sum(y["mode"] == x["mode"] for y in group) / len(group) for x in group]
    if scheme == "adacot":
        scores = [x["outcome"] - 0.3 * ((x["mode"] == 0) == (fast < 0.5)) for x in group]
    elif scheme == "ada_grpo":
        scores = [o * (1 + (1 / share - 1) * cosine) for o, share in zip(outcomes, shares, strict=True)]
    elif scheme == "avr":
        scores = []
        for x, share in zip(group, shares, strict=True):
            shaped = (1.5, 1.0)[x["mode"]] if x["correct"] else (-0.5, 0.0)[x["mode"]]
            scores.append(shaped * min(1, max(0.3, 300 / x["length"])) + 0.5 * cosine * (1 - share))
    elif scheme == "length_penalty":
        scores = [x["outcome"] - 0.3 * x["length"] / max_length for x in group]
    else:
        scores = outcomes
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    return [((score - mean) / (std + (1e-4 if scheme == "grpo" else 1e-6)),) * 2 for score in scores]


def _separate(group, outcomes, bonus):
    found = []
    for x, outcome, own in zip(group, outcomes, bonus, strict=True):
        same = [o for o, y in zip(outcomes, group, strict=True) if y["mode"] == x["mode"]]
        mode = (own - statistics.fmean(bonus)) / (statistics.pstdev(bonus) + 1e-6)
        found.append((mode, outcome - statistics.fmean(same)))
    return found


def _reference(group, outcomes, bonus):
    to_go = []
    for x, outcome, own in zip(group, outcomes, bonus, strict=True):
        first = own if x["mode"] == 1 and x["length"] == 1 else outcome + own
        to_go.append([first] + [outcome] * (x["length"] - 1))
    tokens = [value for row in to_go for value in row]
    mean, std = statistics.fmean(tokens), statistics.pstdev(tokens)
    later = [(outcome - mean) / (std + 1e-6) for outcome in outcomes]
    return [((row[0] - mean) / (std + 1e-6), rest) for row, rest in zip(to_go, later, strict=True)]


def loss(scheme, logprobs, old, credit, lengths, margins):
    """The scheme's loss from float64 log-probs [B, T] of one batch; `credit` as `advantages` gives, margins [B]."""
    mode_kind, kind, high, dual, uniform, coefficient, normaliser = METHODS[scheme]
    first, later = [], []
    for row, length in enumerate(lengths):
        at_mode = math.log(0.5) if uniform else old[row, 0]
        first.append(_term(mode_kind, logprobs[row, 0], at_mode, credit[row][0], high, dual))
        terms = [_term(kind, logprobs[row, t], old[row, t], credit[row][1], high, dual) for t in range(1, length)]
        later.append(terms)
    tokens, size = sum(lengths), len(lengths)
    penalty = coefficient * (margins**2).sum() / tokens
    every = [term for terms in later for term in terms]
    if normaliser == "two means":
        return 1e-3 * sum(first) / size + sum(every) / len(every)
    if normaliser == "sequences":
        return sum((f + sum(terms)) / (1 + len(terms)) for f, terms in zip(first, later, strict=True)) / size
    return (sum(first) + sum(every)) / tokens + penalty


def _term(kind, logprob, old, advantage, high, dual):
    ratio = torch.exp((logprob - old).clamp(-20, 20))
    clipped = ratio.clamp(0.8, 1 + high)
    if kind == "cispo":
        return -advantage * clipped.detach() * logprob
    value = torch.maximum(-advantage * ratio, -advantage * clipped)
    if dual is not None and advantage < 0:
        value = torch.minimum(value, torch.tensor(-advantage * dual, dtype=value.dtype))
    return value
