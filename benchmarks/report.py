"""The generated tables of the documents: `python benchmarks/report.py` rewrites them from the committed results and the
code. A table stands between its two markers, in whichever of `DOCUMENTS` has them."""

import json
import re
from pathlib import Path
from statistics import mean

from report_control import kv_keep_table, paths_table, serving_table, smollm2_programs_table, steer_table
from report_gpu import gpu_table, sass_table

from adapt_kernels import env

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "benchmarks" / "README.md", ROOT / "csrc" / "README.md")
CASES = {
    "T": "temperature",
    "k20p95": "top_k 20, top_p .95",
    "p95": "top_p .95",
    "minp": "min_p .05",
    "mode": "mode step",
}
WORKLOADS = {
    "single-greedy": "1 row of 100 tokens, greedy, V = 32000",
    "group-512": "4 prompts of 512 tokens x 16 samples of 16 tokens",
    "group-2048": "4 prompts of 2048 tokens x 16 samples of 16 tokens",
    "mixed-20-400-greedy": "56 rows of 20 tokens and 8 of 400, greedy",
    "mixed-20-400-sampled": "56 rows of 20 tokens and 8 of 400, sampled",
}
# Benchmark, what it measures, and its cases.
CREDIT = (
    ("token_logprobs", "log-prob + entropy", ("adapt_kernels", "halfmasked", "tenthlive")),
    ("policy_loss", "loss + gradient", ("adapt_kernels", "buffer", "halfmasked", "halfmasked_buffer", "tenthlive")),
)
ROWS = {
    "adapt_kernels": "all",
    "buffer": "all, into a reused gradient",
    "halfmasked": "half masked",
    "halfmasked_buffer": "half masked, into a reused gradient",
    "tenthlive": "nine tenths masked",
}


def seconds_of(name: str) -> dict[str, float]:
    """Least time of every case of one committed benchmark."""
    results = json.loads((RESULTS / f"{name}_cpu.json").read_text("utf-8"))
    return {case: stats["min"] for case, stats in results["seconds"].items()}


def mode_sample_table() -> str:
    """Ratios of mode_sample at V = 151936, float32, by filter and logits."""
    seconds = seconds_of("mode_sample")
    lines = [
        "| filters, T = .7 | logits | 1 row: ms | x Hugging Face | 64 rows: ms | x Hugging Face | reads of the rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, label in CASES.items():
        for kind in ("randn", "peaked"):
            row = [label, kind]
            for rows in (1, 64):
                at = f"test_mode_sample[{kind}-V151936-rows{rows}"
                ours, theirs = seconds[f"{at}-{case}-adapt_kernels]"], seconds[f"{at}-{case}-huggingface]"]
                row += [f"{ours * 1e3:.2f}", f"{theirs / ours:.0f}"]
            row.append(f"{ours / seconds[f'{at}-none-one_read]']:.1f}")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def generate_table() -> str:
    """CPU time of whole generate calls."""
    results = json.loads((RESULTS / "generate_cpu.json").read_text("utf-8"))
    seconds = {name: stats["min"] for name, stats in results["seconds"].items()}
    lines = [
        "| batch | patched: s | x dynamic cache | x static cache | x continuous batching | row-steps saved"
        " | KV at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload, label in WORKLOADS.items():
        at, counts = f"test_generate[{workload}", results["counts"]
        if f"{at}-patched]" not in seconds:
            lines.append(f"| {label} | not run | | | | | |")
            continue
        ours = seconds[f"{at}-patched]"]
        row = [label, f"{ours:.1f}"]
        for peer in ("unpatched", "unpatched-static", "continuous"):
            theirs = seconds.get(f"{at}-{peer}]")
            row.append("not run" if theirs is None else f"{theirs / ours:.2f}")
        mine, theirs = counts[f"{at}-patched]"], counts[f"{at}-unpatched]"].get("kv_bytes_peak")
        row.append(f"{1 - mine['row_steps'] / mine['row_steps_padded']:.0%}")
        kept = "" if theirs is None else f", unpatched {theirs / 1e6:.1f} MB"
        row.append(f"{mine['kv_bytes_peak'] / 1e6:.1f} MB{kept}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def segment_attention_table() -> str:
    """Attention of one decode step over shared prompts, against PyTorch's over copies of them."""
    seconds = seconds_of("segment_attention")
    lines = ["| rows | ms | x SDPA | x SDPA, padded | reads of its KV |", "|---|---|---|---|---|"]
    for case in sorted({name.partition("[")[2].rpartition("-")[0] for name in seconds}):
        shape, prompt, own = case.split("-")
        prompts, samples = shape.split("x")
        found = {name.rpartition("-")[2].rstrip("]"): s for name, s in seconds.items() if f"[{case}-" in name}
        ours, padded = found["adapt_kernels"], found["adapt_kernels_padded"]
        row = [f"{prompts} prompts of {prompt} x {samples} samples of {own} tokens", f"{ours * 1e3:.1f}"]
        row += [f"{found['sdpa'] / ours:.1f}", f"{found['sdpa_padded'] / padded:.0f}"]
        row.append(f"{ours / found['one_read']:.0f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def tokens_per_second_table() -> str:
    """Tokens per second of patched generate on real models, and the ratio to the unpatched one."""
    seconds = seconds_of("tokens_per_second")
    lines = [
        "| model | rows | greedy | top_k 20, top_p .95 | top_p .95 |",
        "|---|---|---|---|---|",
    ]
    for model, label in {"shipped": "shipped checkpoint", "smollm2": "SmolLM2-135M"}.items():
        for rows in (1, 16, 64):
            row = [label, str(rows)]
            for sampling in ("greedy", "sampled", "nucleus"):
                at = f"test_tokens_per_second[{model}-rows{rows}-{sampling}"
                ours, theirs = seconds[f"{at}-adapt_kernels]"], seconds[f"{at}-huggingface]"]
                row.append(f"{rows * 16 / ours:.0f} ({theirs / ours:.2f}x)")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def credit_table() -> str:
    """Ratios of the training ops at 512 rows of V = 151936; masked rows cost TRL as much as others."""
    lines = [
        "| op | rows | ms | x TRL, 8 sequences | x TRL, flat rows | x `torch.compile` | reads of the logits "
        "| MB beyond the result: ours, TRL's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for op, label, cases in CREDIT:
        lines += [_credit_line(op, label, "fp32", case) for case in cases]
        lines += [_credit_line(op, label, "bf16", case) for case in cases if case in ("adapt_kernels", "buffer")]
    seconds, at = seconds_of("policy_loss"), "test_linear_policy_loss"
    for case in ("adapt_kernels", "halfmasked"):
        ours = seconds[f"{at}[{case}]"]
        row = ["`linear_policy_loss`, D = 256", ROWS[case], f"{ours * 1e3:.0f}", f"{seconds[f'{at}[trl]'] / ours:.1f}"]
        row += ["not run", "not run", f"{ours / seconds[f'{at}[three_gemms]']:.2f} x its three GEMMs", "not run"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _credit_line(op, label, dtype, case) -> str:
    seconds, at = seconds_of(op), f"test_{op}[V151936-rows512-{dtype}"
    counts = json.loads((RESULTS / f"{op}_cpu.json").read_text("utf-8"))["counts"]
    ours = seconds[f"{at}-{case}]"]
    row = [f"`{op}`, {label}", ROWS[case] + (", bfloat16" if dtype == "bf16" else ""), f"{ours * 1e3:.0f}"]
    row += [f"{seconds[f'{at}-{peer}]'] / ours:.1f}" for peer in ("trl", "trl_flat", "torch_compile")]
    row.append(f"{ours / seconds[f'{at}-one_read]']:.1f}")
    row.append(", ".join(f"{counts[f'{at}-{name}]']['extra_bytes'] / 1e6:.0f}" for name in (case, "trl_flat")))
    return f"| {' | '.join(row)} |"


def miniature_table() -> str:
    """What training under each scheme did to the shipped SFT checkpoint: means over the seeds."""
    runs: dict[str, list[dict]] = {}
    for run in json.loads((RESULTS / "adapt_miniature.json").read_text("utf-8"))["runs"]:
        runs.setdefault(run["name"], []).append(run)
    lines = [
        "| trained by | seeds | P(fast), easiest | hardest | slow accuracy | accuracy | tokens | over random, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in runs.items():
        at_0 = [next(row for row in run["frontier"] if row["bias"] == 0) for run in group]
        gains = [100 * (row["accuracy"] - row["random_choice"]) for row in at_0]
        row = [name, str(len(group)) if group[0]["seed"] is not None else "-"]
        row += [f"{mean(run['p_fast'][i] for run in group):.2f}" for i in (0, -1)]
        row.append(f"{mean(mean(run['slow_accuracy']) for run in group):.3f}")
        row += [f"{mean(row['accuracy'] for row in at_0):.3f}", f"{mean(row['mean_tokens'] for row in at_0):.2f}"]
        spread = f" ({min(gains):+.1f} to {max(gains):+.1f})" if len(group) > 1 else ""
        lines.append(f"| {' | '.join([*row, f'{mean(gains):+.1f}{spread}'])} |")
    return "\n".join(lines) + "\n"


def training_step_table() -> str:
    """Both trainers' step at the lengths of the mixed batch; its parts come from the counts."""
    seconds = seconds_of("training_step")
    parts = json.loads((RESULTS / "training_step_cpu.json").read_text("utf-8"))["counts"]
    lines = ["| trainer | rollout: s | loss and gradient: s | step: s | x TRL's step |", "|---|---|---|---|---|"]
    for kind, label in (("trl", "`GRPOTrainer`"), ("adapt_kernels", "`ADaPTTrainer`")):
        case = f"test_training_step[{kind}]"
        row = [label, *(f"{parts[case][f'seconds_of_{part}']:.1f}" for part in ("rollout", "loss"))]
        row += [f"{seconds[case]:.1f}", f"{seconds['test_training_step[trl]'] / seconds[case]:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


TABLES = {
    "environment": env.markdown_table,
    "miniature": miniature_table,
    "mode_sample": mode_sample_table,
    "credit": credit_table,
    "gpu": gpu_table,
    "sass": sass_table,
    "generate": generate_table,
    "segment_attention": segment_attention_table,
    "tokens_per_second": tokens_per_second_table,
    "training_step": training_step_table,
    "steer": steer_table,
    "paths": paths_table,
    "kv_keep": kv_keep_table,
    "serving": serving_table,
    "smollm2_programs": smollm2_programs_table,
}


def updated(text: str) -> str:
    """A document's text with every generated table in it rewritten."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        text = re.sub(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _, t=table: t(), text, flags=re.S)
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text("utf-8")), "utf-8")
