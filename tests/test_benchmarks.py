"""The benchmarks run, and README shows what they wrote."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def benchmark_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_the_committed_results():
    report = benchmark_module("report")
    text = report.README.read_text("utf-8")
    for name in report.TABLES:
        assert f"<!-- {name}: generated -->\n|" in text, name
    assert report.updated(text) == text, "run python benchmarks/report.py"


def test_the_report_of_the_miniature_shows_the_committed_runs(tmp_path):
    report = benchmark_module("adapt_miniature_report")
    committed = ROOT / "benchmarks" / "results" / "adapt_miniature.json"
    results = json.loads(committed.read_text("utf-8"))
    report.write(results, tmp_path / "again")
    for suffix in (".md", ".csv"):
        text = (tmp_path / "again").with_suffix(suffix).read_text("utf-8")
        assert text == committed.with_suffix(suffix).read_text("utf-8"), "run benchmarks/adapt_miniature.py --render"
    schemes = report.by_name(results)
    assert all(len(runs) >= 3 for name, runs in schemes.items() if name != "SFT")
    for name in ("separate, as shipped", "separate"):  # what README and the report say of it
        assert [report.outcome(run) for run in schemes[name]] == ["chooses"] * 3
    assert all(report.gain(run) >= 5 for run in schemes["separate, as shipped"])


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


def test_every_plan_of_generate_runs():
    # Patched, unpatched, unpatched with a static cache, and continuous batching.
    assert "4 passed" in run("bench_generate", "single-greedy")
