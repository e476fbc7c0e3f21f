"""adapt_miniature.md and .csv from the measured runs; every number in the text is read from them."""

import csv
from pathlib import Path
from statistics import mean

TEMPLATE = Path(__file__).with_name("adapt_miniature_template.md")
EASY_TO_HARD = 0.5  # the least fall of P(fast) over the difficulties that counts as a choice by the problem
ONE_SIDED = 0.05  # P(fast) within this of 0 or 1 at every difficulty is a collapse


def write(results: dict, path: Path) -> None:
    """Write `path`.md and `path`.csv."""
    path.with_suffix(".md").write_text(report(results), "utf-8")
    with path.with_suffix(".csv").open("w", newline="") as file:
        rows = [row_of(run) for run in results["runs"]]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row_of(run: dict) -> dict:
    """One run as one flat line."""
    at_0 = at_bias(run, 0)
    low, high = run["frontier"][0], run["frontier"][-1]
    row = {"scheme": run["name"], "seed": "" if run["seed"] is None else run["seed"], "outcome": outcome(run)}
    row |= {f"p_fast_{k}": f"{p:.3f}" for k, p in zip(run["difficulty"], run["p_fast"], strict=True)}
    row |= {
        "fast_accuracy": f"{mean(run['fast_accuracy']):.4f}",
        "slow_accuracy": f"{mean(run['slow_accuracy']):.4f}",
        "accuracy": f"{at_0['accuracy']:.4f}",
        "mean_tokens": f"{at_0['mean_tokens']:.3f}",
        "gain": f"{at_0['accuracy'] - at_0['random_choice']:+.4f}",
        "tokens_at_bias_-8": f"{low['mean_tokens']:.2f}",
        "tokens_at_bias_8": f"{high['mean_tokens']:.2f}",
        "area": f"{run['area']:+.4f}",
        "cpu_s": f"{run.get('cpu_s', 0):.0f}",
    }
    return row


def at_bias(run: dict, bias: float) -> dict:
    """The frontier's row at `bias`."""
    return next(row for row in run["frontier"] if row["bias"] == bias)


def outcome(run: dict) -> str:
    """What the model does on its own: chooses by the problem, always the same mode, or neither."""
    p_fast = run["p_fast"]
    if min(p_fast) > 1 - ONE_SIDED:
        return "always fast"
    if max(p_fast) < ONE_SIDED:
        return "always slow"
    return "chooses" if p_fast[0] - p_fast[-1] >= EASY_TO_HARD else "does not choose"


def by_name(results: dict) -> dict[str, list[dict]]:
    """Runs of each scheme, in order."""
    found: dict[str, list[dict]] = {}
    for run in results["runs"]:
        found.setdefault(run["name"], []).append(run)
    return found


def over(runs: list[dict], value, form: str = ".3f") -> str:
    """The mean over seeds, and the range in brackets where there are several."""
    values = [value(run) for run in runs]
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def choice_table(results: dict) -> str:
    """P(fast) by difficulty, mean over the seeds, and how many of them ended how."""
    levels = results["runs"][0]["difficulty"]
    lines = [f"| scheme | {' | '.join(f'k={k}' for k in levels)} | outcome |", "|---" * (len(levels) + 2) + "|"]
    for name, runs in by_name(results).items():
        p_fast = [f"{mean(run['p_fast'][i] for run in runs):.2f}" for i in range(len(levels))]
        found = [outcome(run) for run in runs]
        counted = ", ".join(f"{word} ({found.count(word)} of {len(found)})" for word in dict.fromkeys(found))
        lines.append(f"| {name} | {' | '.join(p_fast)} | {counted} |")
    return "\n".join(lines) + "\n"


def accuracy_table(results: dict) -> str:
    """Accuracy by mode, what the model does on its own, the reach of the dial and the frontier's area."""
    lines = [
        "| scheme | fast accuracy | slow accuracy | accuracy at bias 0 | tokens | gain, points | tokens at bias -8, +8 "
        "| area, points | CPU s |",
        "|---" * 9 + "|",
    ]
    for name, runs in by_name(results).items():
        reach = ", ".join(f"{mean(run['frontier'][i]['mean_tokens'] for run in runs):.1f}" for i in (0, -1))
        cells = [
            name,
            over(runs, lambda run: mean(run["fast_accuracy"])),
            over(runs, lambda run: mean(run["slow_accuracy"])),
            over(runs, lambda run: at_bias(run, 0)["accuracy"]),
            over(runs, lambda run: at_bias(run, 0)["mean_tokens"], ".2f"),
            over(runs, gain, "+.1f"),
            reach,
            over(runs, lambda run: 100 * run["area"], "+.1f"),
            f"{mean(run['cpu_s'] for run in runs):.0f}" if "cpu_s" in runs[0] else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gain(run: dict) -> float:
    """Points of accuracy above the random mode choice of the SFT model for the same tokens, at bias 0."""
    row = at_bias(run, 0)
    return 100 * (row["accuracy"] - row["random_choice"])


def worst(run: dict) -> float:
    """The least of these points over all biases."""
    return 100 * min(row["accuracy"] - row["random_choice"] for row in run["frontier"])


def course_table(results: dict, steps=(1, 5, 10, 20, 40, 60, 80, 100, 120)) -> str:
    """Mean P(fast) of the rollouts' prompts during training, mean over the seeds."""
    lines = [f"| scheme | {' | '.join(f'step {step}' for step in steps)} |", "|---" * (len(steps) + 1) + "|"]
    for name, runs in by_name(results).items():
        if "p_fast_during" in runs[0]:
            courses = [run["p_fast_during"] for run in runs]
            reached = [step for step in steps if step <= len(courses[0])]
            cells = [f"{mean(course[step - 1] for course in courses):.2f}" for step in reached]
            cells += [""] * (len(steps) - len(reached))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def span(runs: list[dict], value, form: str = ".2f") -> str:
    """Least and greatest value over the runs."""
    values = sorted(value(run) for run in runs)
    least, greatest = f"{values[0]:{form}}", f"{values[-1]:{form}}"
    return least if least == greatest else f"{least} to {greatest}"


def values(results: dict) -> dict[str, str]:
    """What the template's names stand for."""
    schemes = by_name(results)
    (start,) = schemes["SFT"]
    groups = {
        "separate": schemes["separate, as shipped"] + schemes["separate, without KL"] + schemes["separate"],
        "shipped": schemes["separate, as shipped"],
        "free": schemes["separate, without KL"],
        "plain": schemes["separate"],
        "balanced": schemes["reference"],
        "chosen": schemes["reference, model chooses"],
        "degrpo": schemes["DeGRPO"],
        "alpha": schemes["DeGRPO, alpha 0.7"],
        "adaptthink": schemes["AdaptThink"],
        "mild": schemes["length penalty 0.3"],
        "medium": schemes["length penalty 1"],
        "strong": schemes["length penalty 3"],
    }
    found = {}
    for name, runs in groups.items():
        found |= {
            f"{name}_outcomes": outcomes(runs),
            f"{name}_easiest": span(runs, lambda run: run["p_fast"][0]),
            f"{name}_hardest": span(runs, lambda run: run["p_fast"][-1]),
            f"{name}_gain": span(runs, gain, "+.1f"),
            f"{name}_worst": span(runs, worst, "+.1f"),
            f"{name}_slow": span(runs, lambda run: mean(run["slow_accuracy"]), ".3f"),
            f"{name}_lost": span(
                runs, lambda run: 100 * (mean(start["fast_accuracy"]) - mean(run["fast_accuracy"])), ".1f"
            ),
            f"{name}_least": span(runs, lambda run: min(run["p_fast_during"])),
            f"{name}_tokens": span(runs, lambda run: run["frontier"][-1]["mean_tokens"], ".1f"),
        }
    return found


def outcomes(runs: list[dict]) -> str:
    """The outcomes of the runs, counted."""
    found = [outcome(run) for run in runs]
    return " and ".join(f"{word} in {found.count(word)} of {len(found)} runs" for word in dict.fromkeys(found))


def report(results: dict) -> str:
    """The whole of adapt_miniature.md."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    return TEMPLATE.read_text("utf-8").format(
        problems=results["problems"],
        seed=results["evaluation_seed"],
        machine=machine,
        choice=choice_table(results),
        accuracy=accuracy_table(results),
        course=course_table(results),
        **values(results),
    )
