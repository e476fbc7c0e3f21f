"""The tables of what steers a call: programs, paths, a KV budget, and the same in a serving engine."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
KV_PEERS = {
    "huggingface": "full, Hugging Face's loop",
    "quantized": "its `QuantizedCache` of 4 bits",
    "sliding": "its sliding window of 512 (a model made so)",
    "full": "full, ours",
    **{
        name: f"`KeepKV(512, 384, 64, {name!r})`"
        for name in ("recent", "random", "key_norm", "key_diff", "snap", "tova", "r_kv")
    },
}


def _results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def steer_table() -> str:
    """A whole call of 64 rows and 16 tokens, with a program and without."""
    counts = _results("steer_cpu")["counts"]
    lines = ["| sampling | plain: ms a step | with the program: x plain, median of pairs | least times |"]
    lines.append("|---|---|---|---|")
    for sampling, label in (("filtered", "top_k 20, top_p .95, T = .7"), ("T1", "T = 1"), ("greedy", "greedy")):
        found = counts[f"test_generate[{sampling}]"]
        ratios = [f"{found[name]:.2f}" for name in ("ratio", "least_ratio")]
        lines.append(f"| {label} | {1e3 * found['plain'] / 16:.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def paths_table() -> str:
    """What pruning saves of a whole call, against the same call unpruned and against the unpatched model."""
    results = _results("paths_cpu")
    seconds = {name: stats["min"] for name, stats in results["seconds"].items()}
    at = {policy: f"test_paths[{policy}]" for policy in ("unpatched", "unpruned", "random", "confidence", "scorer")}
    lines = [
        "| score | s | unpruned: x | unpatched: x | row-steps: unpruned x | KV at most: MB | unpruned: MB |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = results["counts"][at["unpruned"]]
    for policy in ("unpruned", "random", "confidence", "scorer"):
        ours, counts = seconds[at[policy]], results["counts"][at[policy]]
        row = [policy, f"{ours:.1f}", *(f"{seconds[at[peer]] / ours:.2f}" for peer in ("unpruned", "unpatched"))]
        row += [f"{whole['row_steps'] / counts['row_steps']:.2f}"]
        row += [f"{each['kv_bytes_peak'] / 1e6:.1f}" for each in (counts, whole)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def smollm2_programs_table() -> str:
    """What each program does to the thoughts of a real model."""
    found = _results("smollm2_programs")["programs"]
    names = ("thought_tokens", "longest_thought", "reply_tokens", "words", "closed_by_model", "closed_by_rule")
    shown = [("program", *(name.replace("_", " ") for name in names)), ("---",) * 7]
    for label, row in found.items():
        cells = (f"{row[name]:.0%}" if name.startswith("closed") else f"{row[name]:.3g}" for name in names)
        shown.append((label if label == "none" else f"`{label}`", *cells))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in shown)


def kv_keep_table() -> str:
    """Whole calls by length, against the full caches and their rivals; what scoring takes of one."""
    results = _results("kv_keep_cpu")
    seconds, counts = results["seconds"], results["counts"]
    lengths = (500, 1000, 2000, 4000)
    lines = [f"| cache | {' | '.join(f'{n} tokens: s' for n in lengths)} | peak: MB beyond the model | evicting |"]
    lines.append("|---" * (len(lengths) + 3) + "|")
    for peer, label in KV_PEERS.items():
        cases = [f"test_kv_keep[new{length}-{peer}]" for length in lengths]
        row = [label, *(f"{seconds[case]['min']:.1f}" for case in cases)]
        row.append(f"{counts[cases[-1]]['extra_bytes'] / 1e6:.0f}")
        share = counts.get(f"test_cost_of_scoring[{peer}]")
        row.append("" if share is None else f"{share['evict_share']:.1%}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def serving_table() -> str:
    """A step's time in the processor beside the model's own, by rows."""
    seconds = {name: stats["median"] for name, stats in _results("serving_cpu")["seconds"].items()}
    kinds = ("off the gate", "budget", "at the gate")
    lines = [f"| rows | SmolLM2's step: ms | {' | '.join(f'{kind}: ms (share)' for kind in kinds)} |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    for rows in (1, 32, 256):
        step = seconds[f"test_model_step[{rows}]"]
        found = [seconds[f"test_step[{kind}-{rows}]"] for kind in kinds]
        cells = (f"{1e3 * each:.3f} ({each / step:.2%})" for each in found)
        lines.append(f"| {rows} | {1e3 * step:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
