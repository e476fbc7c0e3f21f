"""The benchmarks run, and the documents show what they wrote."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def benchmark_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_show_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = benchmark_module("report")
    shown = {path: path.read_text("utf-8") for path in report.DOCUMENTS}
    for name in report.TABLES:
        found = [path for path, text in shown.items() if f"<!-- {name}: generated -->\n" in text]
        assert len(found) == 1, (name, found)
    for path, text in shown.items():
        marked = re.findall(r"<!-- (\S+): generated -->", text)
        assert sorted(marked) == sorted(set(marked) & set(report.TABLES)), path
        assert report.updated(text) == text, "run python benchmarks/report.py"
    assert "generated -->" not in (ROOT / "README.md").read_text("utf-8")


def rendered_again(report, name: str, folder: Path) -> dict:
    """The committed runs of a report, once it is shown that `report` makes its pages of them."""
    committed = ROOT / "benchmarks" / "results" / f"{name}.json"
    results = json.loads(committed.read_text("utf-8"))
    report.write(results, folder / "again")
    for suffix in (".md", ".csv"):
        text = (folder / "again").with_suffix(suffix).read_text("utf-8")
        assert text == committed.with_suffix(suffix).read_text("utf-8"), "run benchmarks/adapt_miniature.py --render"
    return results


def test_the_report_of_the_miniature_shows_the_committed_runs(tmp_path):
    report = benchmark_module("adapt_miniature_report")
    results = rendered_again(report, "adapt_miniature", tmp_path)
    schemes = report.by_name(results)
    assert all(len(runs) >= 3 for name, runs in schemes.items() if name != "SFT")
    for name in ("separate, as shipped", "separate"):  # what benchmarks/README.md and the report say of it
        assert [report.outcome(run) for run in schemes[name]] == ["chooses"] * 3
    assert all(report.gain(run) >= 5 for run in schemes["separate, as shipped"])


def test_the_report_of_the_schemes_shows_the_committed_runs(tmp_path, monkeypatch):
    import adapt_kernels as ak

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compared = benchmark_module("adapt_schemes")
    results = rendered_again(compared, "adapt_schemes", tmp_path)
    schemes = benchmark_module("adapt_miniature_report").by_name(results)
    assert sorted([*schemes, *compared.LEFT_OUT]) == sorted([*ak.schemes.SCHEMES, "SFT"])
    assert all(len(runs) == 3 for name, runs in schemes.items() if name != "SFT")
    assert {run["settings"].get("model") for run in results["runs"]} == {None, "start"}


def test_every_scheme_is_compared_or_said_why_not(tmp_path, monkeypatch):
    """Each with settings that training accepts, all at one budget; and the report names those that lose."""
    import adapt_kernels as ak
    from adapt_recipes.training.rl_config import RlConfig
    from adapt_recipes.training.rl_trainer import trainer_config

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compared = benchmark_module("adapt_schemes")
    budget = {"iterations": 120, "learning_rate": 5e-4, "mode_weight": 1.0, "mode_margin_coef": None}
    variants = compared.variants(budget, tmp_path, None)
    assert sorted([*variants, *compared.LEFT_OUT]) == sorted(ak.schemes.SCHEMES)
    for name, settings in variants.items():
        assert budget.items() <= settings.items() and settings["scheme"] == name
        args = trainer_config(RlConfig(**settings), tmp_path / name, 16)
        args.method.check(name, args.scheme_settings, len(ak.Modes.from_pretrained(settings["model"])), ())
    results = json.loads((ROOT / "benchmarks" / "results" / "adapt_miniature.json").read_text("utf-8"))
    compared.write(results, tmp_path / "report")
    losing = (tmp_path / "report.md").read_text("utf-8").split("Below a random mode choice")[1]
    assert "AdaptThink (-7.0)" in losing and "separate, as shipped" not in losing
    assert len((tmp_path / "report.csv").read_text("utf-8").splitlines()) == 1 + len(results["runs"])


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


def gpu(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_gpu_run_says_that_there_is_no_gpu():
    done = gpu()
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("make gpu needs an NVIDIA GPU") and done.stderr.count("\n") == 1


def test_every_stage_of_the_gpu_run_goes_through_on_a_cpu(tmp_path):
    done = gpu("--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu_dry_run.json").read_text("utf-8"))
    outcomes = {name: stage["outcome"] for name, stage in results["stages"].items()}
    needs_gpu = {"nothing waits", "graph of a decode step", "memcheck", "racecheck"}
    assert {name for name, outcome in outcomes.items() if outcome == "not run"} == needs_gpu
    assert set(outcomes.values()) == {"passed", "not run"} and len(outcomes) == 16
    ours = {key: case for key, case in results["cases"].items() if "-adapt_kernels" in key or key.endswith("-patched")}
    assert len(ours) == 20 and all("not run" not in case for case in ours.values())
    # The table of such a run: a line for each.
    lines = benchmark_module("report_gpu").gpu_lines(results).splitlines()[4:]
    assert len(lines) == len(ours) and all(line.count("|") == 5 for line in lines)
