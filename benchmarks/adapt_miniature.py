"""ADaPT in miniature: the shipped task trained under several schemes, three seeds each, and what came out.

    python benchmarks/adapt_miniature.py --runs FOLDER

trains what FOLDER does not hold yet (about 25 CPU minutes; an interrupted call goes on where it stopped), measures
every model and writes benchmarks/results/adapt_miniature.json, .csv and .md; `--render` only writes the last two again.
`--schemes` does the same for every scheme of the table at one budget (`adapt_schemes.py`), into adapt_schemes.*.
"""

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import adapt_miniature_report
import adapt_schemes

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.evaluation.compare import BIASES
from adapt_recipes.evaluation.frontier import (
    Outcomes,
    area_over_random_choice,
    frontier,
    levels,
    measure_modes,
    random_choice,
    spread_problems,
)
from adapt_recipes.models import load
from adapt_recipes.training.curve import Curve
from adapt_recipes.training.rl import train
from adapt_recipes.training.rl_config import RlConfig

RESULTS = Path(__file__).resolve().parent / "results" / "adapt_miniature.json"
SEEDS = (0, 1, 2)
PROBLEMS, EVALUATION_SEED = 4000, 7
# What the published methods have in common here; "separate" is also run with it, so that only the scheme differs.
PLAIN = {"iterations": 120, "learning_rate": 5e-4, "mode_weight": 1.0, "mode_margin_coef": None, "kl": 0.0}
PENALTY = {**PLAIN, "scheme": "length_penalty", "rollout": "auto"}
VARIANTS = {
    "separate, as shipped": {},
    "separate, without KL": {"iterations": 100, "learning_rate": 2e-4, "kl": 0.0},
    "separate": PLAIN,
    "reference": {**PLAIN, "scheme": "reference"},
    "reference, model chooses": {**PLAIN, "scheme": "reference", "rollout": "auto"},
    "DeGRPO": {**PLAIN, "scheme": "degrpo", "rollout": "auto"},
    # alpha * mean length is what a mode token weighs against a response token: 4 for the published 1e-3 at 4000 tokens.
    "DeGRPO, alpha 0.7": {**PLAIN, "scheme": "degrpo", "rollout": "auto", "trainer": {"degrpo_alpha": 0.7}},
    "AdaptThink": {**PLAIN, "scheme": "adaptthink"},
    # The penalty is what the longest right answer loses: 12 tokens.
    "length penalty 0.3": {**PENALTY, "trainer": {"length_penalty": 0.3, "length_scale": 12.0}},
    "length penalty 1": {**PENALTY, "trainer": {"length_penalty": 1.0, "length_scale": 12.0}},
    "length penalty 3": {**PENALTY, "trainer": {"length_penalty": 3.0, "length_scale": 12.0}},
}


def main() -> None:
    """Train, measure and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder for the trained models")
    parser.add_argument("--render", action="store_true", help="only write .csv and .md again from the .json")
    parser.add_argument("--schemes", action="store_true", help="every scheme of the table, at one budget")
    parser.add_argument("--steps", type=int, help="optimiser steps of --schemes; for a trial")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many; for a trial")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="measured; for a trial")
    parser.add_argument("--results", type=Path, help="the .json to write, in the place of benchmarks/results")
    given = parser.parse_args()
    results = given.results or (RESULTS.with_name("adapt_schemes.json") if given.schemes else RESULTS)
    if not given.render:
        if given.runs is None:
            parser.error("--runs FOLDER is needed, or --render")
        variants = adapt_schemes.variants(PLAIN, given.runs, given.steps) if given.schemes else VARIANTS
        found = measure_all(given.runs, variants, SEEDS[: given.seeds], given.problems)
        results.write_text(as_text(found), "utf-8")
    written = json.loads(results.read_text("utf-8"))
    (adapt_schemes if given.schemes else adapt_miniature_report).write(written, results.with_suffix(""))


def measure_all(folder: Path, variants: dict, seeds: tuple[int, ...], problems: int) -> dict:
    """Every run's figures, with the settings and the machine."""
    tasks = spread_problems("running_sum", problems, EVALUATION_SEED)
    base = outcomes_of(ar.checkpoint_path("sft"), tasks)
    runs = [figures("SFT", None, {}, base, base)]
    for name, settings in variants.items():
        for seed in seeds:
            out = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
            runs.append(measured(name, RlConfig(seed=seed, **settings), out, tasks, base))
            run = runs[-1]
            print(name, seed, f"{run['cpu_s']:.0f} CPU s", [round(x, 2) for x in run["p_fast"]], flush=True)
    packages = {name: version(name) for name in ("torch", "transformers", "trl")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), **packages}
    return {"machine": machine, "problems": len(tasks), "evaluation_seed": EVALUATION_SEED, "runs": runs}


def measured(name: str, config: RlConfig, out: Path, tasks: list, base: Outcomes) -> dict:
    """One run's figures; those of a run that was measured on as many problems before are read."""
    spent = trained(config, out)
    kept = out / f"figures_{len(tasks)}.json"
    if not kept.is_file():
        curve = {int(row["step"]): float(row["p_fast"]) for row in Curve.rows(out)}
        # The start by its name: where it lies is this machine's.
        settings = asdict(config) | {"model": config.model and Path(config.model).name}
        run = figures(name, config.seed, settings, outcomes_of(out, tasks), base)
        run |= {**spent, "p_fast_during": [curve[step] for step in sorted(curve)]}
        aside = kept.with_suffix(".tmp")
        aside.write_text(json.dumps(run), "utf-8")
        aside.replace(kept)
    return json.loads(kept.read_text("utf-8"))


def as_text(results: dict) -> str:
    """JSON with one run a line and five decimals."""

    def rounded(value):
        if isinstance(value, dict):
            return {name: rounded(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(item) for item in value]
        return round(value, 5) if isinstance(value, float) else value

    results = rounded(results)
    runs = ",\n".join(json.dumps(run) for run in results.pop("runs"))
    return f'{json.dumps(results)[:-1]}, "runs": [\n{runs}\n]}}\n'


def trained(config: RlConfig, out: Path) -> dict[str, float]:
    """Seconds that training `config` into `out` took, in this call or before."""
    result = train(config, out, resume=(out / "training").is_dir())
    return {"wall_s": result.wall_s, "cpu_s": result.cpu_s}


def outcomes_of(folder: Path, tasks: list) -> Outcomes:
    """The model in `folder` on `tasks`, in both modes."""
    model, tokenizer = load(folder)
    modes = ak.Modes.from_pretrained(folder)
    ak.patch(model, modes)
    return measure_modes(model, tokenizer, modes, tasks, rows_per_call=1024)


def figures(name: str, seed: int | None, settings: dict, outcomes: Outcomes, base: Outcomes) -> dict:
    """One run's figures: by difficulty, by bias, and the area over the random mode choice of `base`."""
    by_level = levels(outcomes)
    return {
        "name": name,
        "seed": seed,
        "settings": settings,
        "difficulty": [row.difficulty for row in by_level],
        "p_fast": [row.p_fast for row in by_level],
        **{f"{mode}_accuracy": [row.accuracy[mode] for row in by_level] for mode in outcomes.modes},
        **{f"{mode}_tokens": [row.tokens[mode] for row in by_level] for mode in outcomes.modes},
        "frontier": [
            {**vars(row), "random_choice": random_choice(base, row.mean_tokens)} for row in frontier(outcomes, BIASES)
        ],
        "area": area_over_random_choice(outcomes, base, BIASES),
    }


if __name__ == "__main__":
    main()
