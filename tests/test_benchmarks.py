"""The benchmarks run, and README shows what they wrote."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_readme_shows_the_committed_results():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    text = report.README.read_text("utf-8")
    for name in report.TABLES:
        assert f"<!-- {name}: generated -->\n|" in text, name
    assert report.updated(text) == text, "run python benchmarks/report.py"


def run(name, chosen) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "-p", "no:cacheprovider", "-k", chosen]
        + [f"benchmarks/{name}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_peer_of_mode_sample_runs():
    # The floor, ours, Hugging Face's and top-k first.
    assert "4 passed" in run("bench_mode_sample", "recorded and rows1- and (k20p95 or one_read)")


def test_every_kernel_of_segment_attention_runs():
    assert "5 passed" in run("bench_segment_attention", "4x16-512-64")


def test_every_plan_of_generate_runs():
    # Patched, unpatched, unpatched with a static cache, and continuous batching.
    assert "4 passed" in run("bench_generate", "single-greedy")
