"""Builds the wheel and the sdist from a copy of the tree, as pip would, and looks inside."""

import ast
import configparser
import email
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.search(r'"(.+)"', (ROOT / "adapt_kernels/version.py").read_text("utf-8"))[1]
PACKAGES = {"adapt_kernels": "adapt_kernels", "adapt_recipes": "python/adapt_recipes"}
CXX_SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h"))
CUDA_SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh"))
# The build must not need these: an isolated build environment has none of them.
BUILD = """
import json, sys
from setuptools import build_meta
for name in ("torch", "transformers", "triton", "numpy", "pybind11", "ninja"):
    sys.modules[name] = None
hook, folder = sys.argv[1:]
print(json.dumps(getattr(build_meta, hook)(folder)))
"""


def build(source, hook, folder):
    """Runs one packaging hook, without pip and thus without a network."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(folder)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy, so that no build folder appears in the checkout."""
    target = tmp_path_factory.mktemp("packaging") / "source"
    target.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*_cache")
    for entry in ("adapt_kernels", "benchmarks", "csrc", "python", "tests", ".ci"):
        shutil.copytree(ROOT / entry, target / entry, ignore=skip)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, target)
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, "build_wheel", tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build(source, "build_sdist", tmp_path_factory.mktemp("sdist") / "out")


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"adapt_kernels-{VERSION}.dist-info/METADATA"))


def wheel_files(path):
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def expected_files():
    """Everything in the two package folders, and the C++ and CUDA sources, under their import paths."""
    for path in CXX_SOURCES + CUDA_SOURCES:
        yield f"adapt_kernels/csrc/{path.relative_to(ROOT / 'csrc').as_posix()}"
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(ROOT / folder).as_posix()}"


def test_wheel_holds_both_packages_and_nothing_else(wheel):
    assert wheel.name == f"adapt_kernels-{VERSION}-py3-none-any.whl"
    files = wheel_files(wheel)
    assert files == set(expected_files())
    assert {"adapt_kernels/__init__.py", "adapt_kernels/py.typed", "adapt_recipes/__init__.py"} <= files
    assert not any(name.startswith("tests/") or "/tests/" in name for name in files)


def test_wheel_holds_the_checkpoint(wheel):
    files = wheel_files(wheel)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert f"adapt_recipes/checkpoints/sft/{name}" in files
    with zipfile.ZipFile(wheel) as archive:
        sizes = [i.file_size for i in archive.infolist() if i.filename.startswith("adapt_recipes/checkpoints/sft/")]
    assert sum(sizes) < 1_000_000


def test_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    assert sdist.name == f"adapt_kernels-{VERSION}.tar.gz"
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"adapt_kernels-{VERSION}"
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints-cpu.txt",
        "constraints-oldest.txt",
        "CMakeLists.txt",
        "csrc/README.md",
        "python/README.md",
        "benchmarks/README.md",
        "benchmarks/results/frontier.png",
        ".ci/run",
        ".ci/versions",
        ".ci/dist",
        ".ci/hub_kernel.py",
        "build.toml",
    ):
        assert (unpacked / name).is_file(), name
    assert (unpacked / "tests/test_packaging.py").is_file()
    again = build(unpacked, "build_wheel", tmp_path / "out")
    assert wheel_files(again) == wheel_files(wheel)


def test_editable_install_finds_both_packages(source, tmp_path):
    with zipfile.ZipFile(build(source, "build_editable", tmp_path / "out")) as archive:
        archive.extractall(tmp_path / "site")
    # -S hides the environment's own packages, so only the editable hook can answer.
    code = (
        "import site, sys, importlib.util as u; site.addsitedir(sys.argv[1]); "
        "print(*(u.find_spec(name).origin for name in sys.argv[2:]), sep='\\n')"
    )
    folders = ("adapt_kernels", "adapt_kernels/ops", "python/adapt_recipes", "python/adapt_recipes/tasks")
    names = [folder.removeprefix("python/").replace("/", ".") for folder in folders]
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site"), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(source / name / "__init__.py") for name in folders]


@pytest.mark.parametrize("route", ["wheel", "editable"])
def test_jit_finds_the_sources(route, source, wheel, tmp_path):
    if route == "wheel":
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "site")
        expected = tmp_path / "site/adapt_kernels/csrc"
    else:
        with zipfile.ZipFile(build(source, "build_editable", tmp_path / "out")) as archive:
            archive.extractall(tmp_path / "site")
        expected = source / "csrc"
    code = (
        "import site, sys; site.addsitedir(sys.argv[1]); from adapt_kernels.native import jit, jit_cuda; "
        "found = jit.native_extension(); print(found.folder, *found.inputs(), sep='\\n'); "
        "print(*jit_cuda.cuda_extension('sm_90').inputs(), sep='\\n', file=sys.stderr)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    folder, *inputs = map(Path, done.stdout.splitlines())
    assert folder.resolve() == expected.resolve()
    names = [path.relative_to(folder) for path in inputs]
    assert names == [path.relative_to(ROOT / "csrc") for path in CXX_SOURCES if path.parent.name != "cuda"]
    found = [Path(path).relative_to(folder) for path in done.stderr.splitlines()]
    wanted = {path for path in CXX_SOURCES if path.parent.name in ("cuda", "adapt")} | set(CUDA_SOURCES)
    assert found == sorted(path.relative_to(ROOT / "csrc") for path in wanted)


def test_metadata(metadata, wheel):
    assert metadata["Name"].replace("-", "_") == "adapt_kernels"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode().startswith("# adapt_kernels")
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"adapt_kernels-{VERSION}.dist-info/entry_points.txt").decode()
        licence = archive.read(f"adapt_kernels-{VERSION}.dist-info/licenses/LICENSE").decode()
    parser = configparser.ConfigParser()
    parser.read_string(entry_points)
    assert dict(parser["console_scripts"]) == {"adapt": "adapt_recipes.cli:main"}
    assert "Apache License" in licence


def test_one_version(metadata):
    import adapt_kernels

    assert metadata["Version"] == adapt_kernels.__version__ == VERSION
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_build_needs_setuptools_only():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert [Requirement(r).name for r in config["build-system"]["requires"]] == ["setuptools"]
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported == {"re", "pathlib", "setuptools"}
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not words & {"ext_modules", "cmdclass", "Extension", "exec", "eval", "__import__"}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not keywords & {"ext_modules", "cmdclass", "setup_requires"}


def test_requirements_and_extras(metadata):
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    plain = {r.name: r for r in wanted if "extra" not in str(r.marker)}
    assert set(plain) == {"torch", "transformers", "numpy", "safetensors", "pybind11", "ninja", "triton"}
    assert "sys_platform" in str(plain["triton"].marker)
    names = ("recipes", "dial", "tasks", "release", "test")
    extras = {e: {r.name for r in wanted if f'extra == "{e}"' in str(r.marker)} for e in names}
    assert extras["recipes"] == {"typer", "rich", "matplotlib", "accelerate", "gguf", "PyYAML", "pydantic"}
    assert extras["dial"] == extras["recipes"] | {"gradio"}
    assert extras["release"] == {"build", "pdoc"}
    assert extras["tasks"] == {"reasoning-gym", "math-verify"}
    assert extras["recipes"] | extras["tasks"] < extras["test"]


def pinned(constraints):
    """{name: version} of a constraints file."""
    pins = {}
    for line in (ROOT / constraints).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"not an exact pin without a local version: {line}"
            pins[canonicalize_name(match[1])] = Version(match[2])
    return pins


def test_constraints_pin_every_requirement(metadata):
    pins = pinned("constraints-cpu.txt")
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, line
        assert any(s.operator in (">=", "==") for s in requirement.specifier), f"no lower bound: {line}"


def test_the_oldest_set_holds_the_lower_bounds(metadata):
    """`make test-versions` runs what setup.py claims."""
    pins = pinned("constraints-oldest.txt")
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        if "extra" not in str(requirement.marker):
            (bound,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert pins.pop(name).release[: len(Version(bound.version).release)] == Version(bound.version).release
    assert not pins


def test_trl_is_declared_as_it_is_accepted(metadata):
    from_setup = [Requirement(line) for line in metadata.get_all("Requires-Dist") if line.startswith("trl")]
    tree = ast.parse((ROOT / "adapt_kernels/trl/fused_logprobs.py").read_text("utf-8"))
    known = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "KNOWN_VERSIONS"
    )
    assert from_setup
    for requirement in from_setup:
        assert str(requirement.specifier) == f"=={known[-1]}" and len(known) == 1
    assert f"pip install trl=={known[-1]}" in (ROOT / "adapt_kernels/trl/__init__.py").read_text("utf-8")


@pytest.mark.parametrize("script", ["run", "versions", "dist"])
def test_ci_scripts_are_executable(script):
    mode = os.stat(ROOT / ".ci" / script).st_mode
    assert mode & stat.S_IXUSR


def test_the_core_that_versions_are_checked_with_exists():
    """pytest runs nothing at all where one of its paths is missing."""
    script = (ROOT / ".ci" / "versions").read_text("utf-8")
    core = script.partition("core=(")[2].partition("\n)")[0]
    named = re.findall(r"(?<![\w/])tests/[\w/.]+", core)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    for test in re.findall(r"--deselect=(\S+)::(\w+)", core):
        assert f"def {test[1]}(" in (ROOT / test[0]).read_text("utf-8")
