"""Environment variables are declared in one place, and the report survives a broken install."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapt_kernels import env, env_report

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(ROOT.glob("adapt_kernels/**/*.py"))
NAMES = {variable.name for variable in env.VARIABLES}


def test_every_variable_named_in_the_package_is_declared():
    named = {name for path in SOURCES for name in re.findall(r"\bADAPT_[A-Z_]+\b", path.read_text("utf-8"))}
    assert "ADAPT_KERNELS_CACHE" in named
    assert named <= NAMES


def test_the_environment_is_read_in_one_place():
    """Elsewhere only PATH, for error texts, and the whole environment, for child processes."""
    for path in SOURCES:
        if path.name == "env.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                assert ast.unparse(node.args[0]) == "'PATH'", path
            elif isinstance(node, ast.Subscript):
                assert ast.unparse(node.value) != "os.environ", path


def test_a_variable_must_be_declared_and_empty_is_not_set(monkeypatch):
    with pytest.raises(KeyError, match="ADAPT_NOTHING is not declared"):
        env.get("ADAPT_NOTHING")
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", "")
    assert env.get("ADAPT_KERNELS_CACHE") is None
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", "x")
    assert env.get("ADAPT_KERNELS_CACHE") == "x"


def test_table_has_one_row_per_variable():
    rows = env.markdown_table().splitlines()
    assert len(rows) == 2 + len(env.VARIABLES)
    assert all(row.count("|") == 5 for row in rows)
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows[2:]] == [v.name for v in env.VARIABLES]


def test_report_has_every_part():
    report = env_report.report()
    assert "failed:" not in report
    for text in ("python: 3.", "torch: ", "pybind11: ", "reference: can run", "folder: ", "ADAPT_KERNELS_CACHE: "):
        assert text in report, text


def test_report_without_torch_and_tools(tmp_path):
    code = "import sys; sys.modules['torch'] = None\nfrom adapt_kernels.env_report import report\nprint(report())"
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "ADAPT_KERNELS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and not (tmp_path / "cache").exists()
    assert re.search(r"torch:\n  failed: ModuleNotFoundError", done.stdout)
    assert "missing: no C++ compiler; remedy: apt-get install g++" in done.stdout
    assert "compiled for this machine: not yet" in done.stdout


def test_report_names_nvcc_and_the_kernels_of_the_gpus_here(monkeypatch, tmp_path):
    assert re.search(r"^  nvcc: ", env_report.report(), re.M)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(env_report, "_architectures", lambda: ["sm_90"])
    report = env_report.report()
    assert "nvcc: missing: no CUDA compiler (nvcc); remedy: install" in report
    assert "compiled for sm_90: not yet" in report
