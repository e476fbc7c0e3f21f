"""README's generated tables: `python benchmarks/report.py` rewrites them from the committed results and the code."""

import json
import re
from pathlib import Path

from adapt_kernels import env

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
CASES = {
    "T": "temperature",
    "k20p95": "top_k 20, top_p .95",
    "p95": "top_p .95",
    "minp": "min_p .05",
    "mode": "mode step",
}


def mode_sample_table() -> str:
    """Ratios of mode_sample at V = 151936, float32, by filter and logits."""
    results = json.loads((RESULTS / "mode_sample_cpu.json").read_text("utf-8"))
    seconds = {name: stats["min"] for name, stats in results["seconds"].items()}
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


TABLES = {"environment": env.markdown_table, "mode_sample": mode_sample_table}


def updated(text: str) -> str:
    """README's text with every generated table rewritten."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        text = re.sub(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _, t=table: t(), text, flags=re.S)
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
