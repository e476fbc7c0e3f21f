"""Every scheme's reward in plain float64 loops, row by row, from the published formulas and their constants.

A row is a dict: outcome, correct, length, group, mode (-1 = malformed), and its signals. `REWARDS[name](rows, at)` is
a list; at has progress, step, modes and memory, a dict that lives as long as the training.
"""

import math
import statistics
from collections import defaultdict


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def grouped(rows):
    found = defaultdict(list)
    for row in rows:
        found[row["group"]].append(row)
    return found


def accuracy(group):
    return sum(row["correct"] for row in group) / len(group)


def each(formula):
    """A scheme whose reward needs one row and its group."""

    def rewards(rows, at):
        groups = grouped(rows)
        return [float(formula(row, groups[row["group"]], at)) for row in rows]

    return rewards


def outcome(x, group, at):
    return x["outcome"]


def degrpo(x, group, at):
    return (1 if x["mode"] == 0 else 0.5) if x["correct"] else -1


def adaptthink(x, group, at):
    return x["correct"] - x["reference_accuracy"] + 0.05 * (x["mode"] == 0)


def adacot(x, group, at):
    fast = [row["correct"] for row in group if row["mode"] == 0]
    needed = (sum(fast) / len(fast) if fast else 0) < 0.5
    return x["outcome"] - 0.3 * ((x["mode"] == 0 and needed) or (x["mode"] > 0 and not needed))


def share(x, group):
    valid = [row["mode"] for row in group if row["mode"] >= 0]
    return valid.count(x["mode"]) / len(valid) if x["mode"] >= 0 else 1.0


def ada_grpo(x, group, at):
    return x["outcome"] * (1 + (1 / share(x, group) - 1) * (1 + math.cos(math.pi * at["progress"])) / 2)


def avr(x, group, at):
    if x["mode"] < 0:
        return -1
    kind = (0, 2)[x["mode"]] if at["modes"] == 2 else x["mode"]
    scale = min(1, max(0.3, 300 / x["length"]))
    shaped = (1 + (0.5, 0.3, 0)[kind]) * scale if x["correct"] else (-0.5, -0.2, 0)[kind]
    alone = sum(row["mode"] >= 0 for row in group) < 2
    weight = 0 if alone else 0.25 * (1 + math.cos(math.pi * at["progress"]))
    return shaped + weight * (1 - share(x, group))


def length_penalty(x, group, at):
    return x["outcome"] - 0.3 * x["length"] / 1024


def base(x):
    return -1 if x["mode"] < 0 else 1 if x["correct"] else -0.5


def laser(x, group, at):
    return base(x) + 0.5 * (base(x) == 1 and x["length"] <= 4096)


def right_of(group, key):
    return [row[key] for row in group if row["correct"] and row["mode"] >= 0]


def length_norm(x, group, at):
    lengths = right_of(group, "length")
    if not x["correct"] or x["mode"] < 0:
        return 0
    mean, std = (0, 1) if len(lengths) == 1 else (statistics.fmean(lengths), statistics.stdev(lengths))
    return 1 - 0.4 * logistic((x["length"] - mean) / (std + 1e-6))


def kimi_share(x, group, right):
    lengths = [row["length"] for row in group]
    if min(lengths) == max(lengths):
        return 0
    found = 0.5 - (x["length"] - min(lengths)) / (max(lengths) - min(lengths))
    return found if right else min(0, found)


def kimi_length(x, group, at):
    return base(x) + 0.4 * kimi_share(x, group, base(x) == 1)


def long_short(x, group, at):
    return x["correct"] + kimi_share(x, group, x["correct"]) - (x["mode"] < 0)


def e1(x, group, at):
    return x["correct"] and x["length"] / statistics.fmean(row["length"] for row in group) <= x["effort"]


def train_long(x, group, at):
    budget = max(1, 256 * 0.8 ** (at["step"] // 100))
    size = x["length"] / budget
    return x["correct"] + (size if size <= 1 else max(0, 2 - size))


def hbpo(x, group, at):
    if x["mode"] < 0:
        return -1
    if not x["correct"] or x["length"] > 4096:
        return 0
    first = 4 * math.cos(3.1416 * x["length"] / 8192) - abs(x["length"] - x["budget"]) / 4096
    return min(first, 4 * math.cos(3.1416 * x["budget"] / 8192))


def adactrl(x, group, at):
    easy, longest = accuracy(group) > 0.625, max(row["length"] for row in group)
    matches = x["mode"] == (0 if easy else 1)
    turn = math.cos(math.pi * x["length"] / longest) * (1 if easy else -1)
    length = (1 + turn) / 2 if matches and x["correct"] else 0
    return (1 if x["correct"] else -1) + 0.5 * length + 0.5 * (-1 if x["mode"] < 0 else matches)


def apriel(x, group, at):
    done, right = x["finished"], x["finished"] and x["correct"]
    start, size = 4096 - 819, 819
    penalty = (start - x["length"]) / size if start < x["length"] <= 4096 else 0
    scale = accuracy(group) if right else 1
    return ((1 if right else -0.5) if done else -1) + penalty * scale


def arlcp(x, group, at):
    if not x["correct"] or x["mode"] < 0:
        return 0
    count = x["reflections"]
    first = 0.05 if count <= 40 else 0.1 if count <= 80 else 0.15
    found = 1.0
    for key, weight in (("reflections", first), ("length", 0.2 - first)):
        values = right_of(group, key)
        std = 1 if len(values) == 1 else statistics.stdev(values)
        found -= weight * logistic((x[key] - statistics.fmean(values)) / (std + 1e-6))
    return found


def fapo(x, group, at):
    return (0 if x["flawed"] else 1) if x["correct"] else -1


def crf(x, group, at):
    return x["correct"] * (1 + 0.2 * x["conciseness"] * (1 - at["progress"] + x["difficulty"]))


def pear(x, group, at):
    if not x["correct"] or x["mode"] < 0:
        return 0
    return min(1, 1 - max(0, x["entropy_think"] - x["entropy_answer"]))


def band(group):
    """0 hard, 1 medium, 2 easy; in whole numbers."""
    right = 3 * sum(row["correct"] for row in group)
    return 2 if right >= 2 * len(group) else 1 if right >= len(group) else 0


def laser_targets(rows, at):
    """The targets of the three bands, renewed every 20 batches."""
    memory, groups = at["memory"], grouped(rows)
    seen = memory.setdefault("seen", [])
    seen.append([(band(group), row["length"]) for group in groups.values() for row in group])
    if (len(seen) - 1) % 20 == 0:
        count = max(map(len, groups.values()))
        needed = (1, max(1, count // 3), max(1, 2 * count // 3))
        recent = [pair for batch in seen[-20:] for pair in batch]
        targets = []
        for kind in range(3):
            own = [length for b, length in recent if b == kind]
            grid = range(1024, 16385, 1024)
            fits = [top for top in grid if sum(x <= top for x in own) * needed[kind] >= max(1, len(own))]
            targets.append(fits[0] if fits else max(row["length"] for row in rows))
        memory["targets"] = targets
    return [memory["targets"][band(groups[row["group"]])] for row in rows]


def laser_d(rows, at):
    targets = laser_targets(rows, at)
    return [base(x) + 0.5 * (base(x) == 1 and x["length"] <= t) for x, t in zip(rows, targets, strict=True)]


def laser_de(rows, at):
    found = []
    for x, target in zip(rows, laser_targets(rows, at), strict=True):
        forgiven = base(x) == -0.5 and x["length"] > target and not x["repetition"]
        found.append(base(x) + 0.5 * ((base(x) == 1 and x["length"] <= target) or forgiven))
    return found


def traac(rows, at):
    groups = grouped(rows)
    level = {key: 2 if accuracy(g) >= 0.8 else 1 if accuracy(g) >= 0.3 else 0 for key, g in groups.items()}
    batches = at["memory"].setdefault("batches", [])
    batches.append([(level[x["group"]], x["length"]) for x in rows if x["correct"] and x["mode"] >= 0])
    found = []
    for x in rows:
        reward = 4 * x["correct"] + 0.5 * (x["mode"] >= 0)
        if x["correct"] and x["mode"] >= 0:
            own = [n for batch in batches[-10:] for kind, n in batch if kind == level[x["group"]]]
            least, most, median = min(own), max(own), statistics.median(own)
            linear = (most - x["length"]) / (most - least) if most > least else 1
            bent = logistic((median - x["length"]) / (0.1 * median))
            reward += (0.5, 0.75, 1)[level[x["group"]]] * max(min(1, max(0, linear)), bent)
        found.append(reward)
    return found


def average(memory, key, value):
    memory[key] = value if key not in memory else 0.9 * memory[key] + 0.1 * value
    return memory[key]


def adathink_med(rows, at):
    memory, logs = at["memory"], [math.log(1 + x["entropy_top"]) for x in rows]
    low, high = min(logs), max(logs)
    unsure = [(value - low) / (high - low) if high > low else 0 for value in logs]
    hard = defaultdict(list)
    for x, e in zip(rows, unsure, strict=True):
        hard[x["group"]].append(x["correct"] * (1 - 0.5 * e))
    hard = {key: 1 - statistics.fmean(values) for key, values in hard.items()}
    ordered = sorted(hard.values())
    place = 0.7 * (len(ordered) - 1)
    below = ordered[int(place)]
    above = ordered[min(int(place) + 1, len(ordered) - 1)]
    theta = average(memory, "theta", below + (above - below) * (place - int(place)))
    sides = defaultdict(list)
    for x in rows:
        sides[hard[x["group"]] < theta].append(x["length"])
    known = {side: memory.get(side, statistics.fmean(lengths)) for side, lengths in sides.items()}
    found = []
    for x, e in zip(rows, unsure, strict=True):
        easy = hard[x["group"]] < theta
        size = (0.5 + 0.5 * (1 - e)) * x["length"] / known[easy]
        length = max(0, 1 - size) if easy and x["correct"] else min(1, size - 1) if not (easy or x["correct"]) else 0
        found.append(x["correct"] + 0.5 * (x["mode"] >= 0) + 0.5 * (length - 0.05 * x["repetition"]))
    for side, lengths in sides.items():
        average(memory, side, statistics.fmean(lengths))
    return found


def ares(rows, at):
    groups, counts = grouped(rows), defaultdict(list)
    for x in rows:
        counts[band(groups[x["group"]])].append(x["triggers"])
    target = {kind: round(statistics.fmean(values)) for kind, values in counts.items()}
    alpha = at["memory"].setdefault("alpha", [0.5] * 3)
    found = []
    for x in rows:
        kind = band(groups[x["group"]])
        beyond = x["triggers"] - target[kind]
        margin = max(1, (0.35, 0.25, 0.15)[kind] * target[kind])
        kappa, tau, cap = (4, 3, 2)[kind], (3, 2.5, 2)[kind], alpha[kind] * (1.2, 1, 1)[kind]

        def bent(distance, part=1.0, kappa=kappa, cap=cap, margin=margin):
            distance = max(distance, 0)
            huber = distance**2 / (2 * kappa) if distance <= kappa else distance - kappa / 2
            return -min(cap, part * cap * huber / (margin + kappa))

        if not x["correct"]:
            extra = (1, 0.8, 0.6)[kind] * cap * logistic(max(beyond - margin, 0) / tau)
        elif kind == 0:
            inside = beyond >= -margin
            extra = cap * logistic((beyond + margin) / tau) if inside else bent(-beyond - margin, 0.5)
        else:
            extra = bent((beyond if kind == 2 else abs(beyond)) - margin)
        found.append(x["correct"] + extra)
    for kind, values in counts.items():
        moved = alpha[kind] + 0.05 * statistics.fmean(n - target[kind] for n in values)
        alpha[kind] = min(2, max(0, moved))
    return found


_BY_ROW = (
    degrpo, adaptthink, adacot, ada_grpo, avr, length_penalty, laser, length_norm, kimi_length, long_short, e1,
    train_long, hbpo, adactrl, apriel, arlcp, fapo, crf, pear,
)  # fmt: skip
REWARDS = {
    **{name: each(outcome) for name in ("separate", "reference", "grpo", "hipo")},
    **{formula.__name__: each(formula) for formula in _BY_ROW},
    **{formula.__name__: formula for formula in (laser_d, laser_de, traac, adathink_med, ares)},
}
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
