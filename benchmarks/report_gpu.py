"""The tables of GPUs: what was timed on one, and what the machine code of the kernels allows at best."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def gpu_table() -> str:
    """A table of every figure taken on each GPU, or a line that says there is none."""
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("gpu_*.json"))]
    tables = [gpu_lines(run) for run in runs if "bytes_per_second" in run]
    return "\n".join(tables) or "No figure of a GPU is here: `make gpu`.\n"


def gpu_lines(results) -> str:
    found, cases = results["environment"], results["cases"]
    versions = f"torch {found['torch']}, Triton {found['triton']}, CUDA {found['cuda']}"
    speed = f"a copy moves {results['bytes_per_second'] / 1e12:.2f} TB/s"
    lines = [f"{found.get('device', 'a dry run')}, {versions}; {speed}.\n"]
    lines += ["| case | ours: us | share of a copy's bandwidth | peers: x ours |", "|---|---|---|---|"]
    times = {key: case.get("warm", case.get("seconds")) for key, case in cases.items()}
    for key, ours in times.items():
        name, _, peer = key.rpartition("-")
        if ours is None or peer not in ("adapt_kernels", "adapt_kernels_in_place", "patched"):
            continue
        share = cases[key].get("share")
        others = {k[len(name) + 1 :]: t for k, t in times.items() if k.startswith(f"{name}-") and k != key and t}
        ratios = ", ".join(f"{other} {t / ours:.2f}" for other, t in others.items())
        kind = "" if peer == "adapt_kernels" else f", {peer.removeprefix('adapt_kernels_')}"
        row = [f"`{name}`{kind}", f"{ours * 1e6:.0f}", "" if share is None else f"{share:.0%}", ratios or "not run"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


# Warp-instructions a second of one scheduler, 528 of which a card has, and bytes a second of H100 and H200.
CLOCK, SCHEDULERS, BANDWIDTHS = 1.9e9, 528, (3.0e12, 4.3e12)


def sass_table() -> str:
    """What the machine code of the kernels that read logits allows at best, and with how many CTAs attention reads one
    row; nothing of it was measured."""
    lines = [
        "| kernel | instructions per logit | loads in flight | registers | CTAs per SM | CTAs, 1 row"
        " | B = 1: us | B = 8 | B = 512 | N = 8192 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cost in json.loads((RESULTS / "sass_sm90.json").read_text("utf-8"))["kernels"].items():
        per_logit = cost.get("instructions_per_logit")
        if per_logit is None and not name.endswith("attend, 1 row"):
            continue
        row = [f"`{name.replace(' ', '` ', 1)}"]
        reads = (f"{per_logit:.1f}", f"{cost['loads_before_use']} x {cost['load_bits']} bits") if per_logit else "--"
        row += [*reads, str(cost["registers"]), str(cost["ctas_per_sm"]), str(cost.get("ctas", "-"))]
        # Read in 16 or 32 bits, and what a gradient writes.
        moved = 4 if "fp32" in name or "policy_loss" in name or "gradient" in name else 2
        row += [_floor(cost, rows, moved) if per_logit else "-" for rows in (1, 8, 512, 8192)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _floor(cost, rows, logit_bytes, vocab_size=151936) -> str:
    """Microseconds on H100 / H200: the longer of issuing the instructions and moving the bytes."""
    warps = rows * cost.get("ctas", SCHEDULERS) * cost["threads"] / 32
    issue = rows * vocab_size * cost["instructions_per_logit"] / 32 / (CLOCK * min(SCHEDULERS, warps))
    moved = rows * vocab_size * logit_bytes
    return " / ".join(f"{float(f'{max(issue, moved / bandwidth) * 1e6:.3g}'):g}" for bandwidth in BANDWIDTHS)
