"""Advantages of whole rows in plain float64 loops, by the baseline of each scheme."""

import math
import statistics
from collections import defaultdict

BASELINES = {"degrpo": "mean", "adaptthink": "none", "arlcp": "rloo"}


def advantages(name, rows, rewards):
    """Of whole rows: the row's reward against its group's, by the scheme's baseline."""
    baseline, groups = BASELINES.get(name, "mean_std"), defaultdict(list)
    for x, reward in zip(rows, rewards, strict=True):
        groups[x["group"]].append(reward)
    found = []
    for x, reward in zip(rows, rewards, strict=True):
        own = groups[x["group"]]
        mean = statistics.fmean(own)
        if baseline == "none":
            found.append(reward)
        elif baseline == "mean":
            found.append(reward - mean)
        elif baseline == "rloo":
            others = (sum(own) - reward) / (len(own) - 1) if len(own) > 1 else reward
            found.append(reward - others)
        else:
            std = statistics.stdev(own) if len(own) > 1 else 0
            found.append((reward - mean) / (std + (1e-4 if name == "grpo" else 1e-6)))
    if name == "hbpo":
        found = [value + bracket for value, bracket in zip(found, brackets(rows, rewards), strict=True)]
    return found


def brackets(rows, rewards):
    """HBPO's, at its default budgets or the rows' own."""
    cells = defaultdict(list)
    for x, reward in zip(rows, rewards, strict=True):
        cells[x["group"], x["budget"]].append(reward)
    ceiling = [4 * math.cos(3.1416 * x["budget"] / 8192) for x in rows]
    return [statistics.fmean(cells[x["group"], x["budget"]]) - c for x, c in zip(rows, ceiling, strict=True)]
