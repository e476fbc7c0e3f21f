"""Walks the syntax tree of both packages; an import that points upward, or an unsafe loader, fails."""

import ast
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"adapt_kernels": "adapt_kernels", "adapt_recipes": "python/adapt_recipes"}


@dataclass(frozen=True)
class Rule:
    name: str
    files: str  # "|"-separated globs on "package/path/to/file.py"; * also matches /
    banned: tuple[str, ...]  # dotted prefixes
    exempt: str = ""

    def covers(self, file):
        def hit(globs):
            return any(fnmatch(file, glob) for glob in globs.split("|") if glob)

        return hit(self.files) and not hit(self.exempt)


MODE_FILES = ("mode", "preset", "prompt_")
HF_ONLY = "adapt_kernels/hf/*|adapt_kernels/trl/*|adapt_kernels/vllm/*"
UPWARD = ("adapt_kernels.hf", "adapt_kernels.trl", "adapt_kernels.vllm")
JIT_USERS = "|".join(
    f"adapt_kernels/{name}.py" for name in ("ops/*/native", "native/kernels", "build", "env_report", "native/jit_cuda")
)
JIT = ("adapt_kernels.native.jit", "adapt_kernels.native.jit_cuda")
BUILD_FILES = "|".join(
    f"adapt_kernels/{name}.py"
    for name in ("native/__init__", "native/jit*", "native/toolchain*", "native/build_cache", "build", "env")
)
MODEL_USERS = ("evaluation", "training")
PROGRAMS = tuple(
    f"adapt_recipes.{name}"
    for name in ("cli", "commands", "train_commands", "serve_commands", "terminal", "demo", "smollm2_frontier")
)
COMMANDS = ("cli", "commands", "train_commands", "serve_commands", "terminal")
PAGE = "|".join(f"adapt_recipes/dial/{name}.py" for name in ("page", "controls", "asking", "style"))
RULES = [
    Rule("engine-below-recipes", "adapt_kernels/*", ("adapt_recipes",)),
    Rule("transformers-only-in-hf", "adapt_kernels/*", ("transformers", "tokenizers"), exempt=HF_ONLY),
    Rule("modes-import-no-engine", "|".join(f"adapt_kernels/{n}*" for n in MODE_FILES), ("triton", *UPWARD)),
    Rule("trl-only-in-adapter", "*", ("trl",), exempt="adapt_kernels/trl/*"),
    Rule("vllm-only-in-adapter", "*", ("vllm",), exempt="adapt_kernels/vllm/*"),
    Rule("ops-below-hf", "adapt_kernels/ops/*", UPWARD),
    Rule("ops-below-programs", "adapt_kernels/ops/*", ("adapt_kernels.program",)),
    Rule("native-below-ops", "adapt_kernels/native/*", ("adapt_kernels.ops", "adapt_kernels.dispatch")),
    Rule("programs-below-hf", "adapt_kernels/program/*", UPWARD),
    Rule("serving-below-engines", "adapt_kernels/serving/*", UPWARD),
    Rule("programs-below-serving", "adapt_kernels/program/*|adapt_kernels/ops/*", ("adapt_kernels.serving",)),
    Rule("reference-is-plain", "adapt_kernels/ops/*/reference.py", ("triton", *JIT)),
    Rule(
        "triton-in-its-own-files",
        "adapt_kernels/*",
        ("triton",),
        exempt="adapt_kernels/ops/*triton*.py|adapt_kernels/triton_driver.py",
    ),
    Rule("kv-below-loop", "adapt_kernels/hf/kv/*", ("adapt_kernels.hf.loop", "adapt_kernels.hf.call")),
    Rule("loop-below-call", "adapt_kernels/hf/loop/*", ("adapt_kernels.hf.call",)),
    Rule("hf-uses-ops-only", "adapt_kernels/hf/*", ("triton", *JIT)),
    Rule("jit-only-where-it-runs", "adapt_kernels/*", JIT, exempt=JIT_USERS),
    Rule("build-needs-no-torch", BUILD_FILES, ("torch", "numpy", "pybind11", "ninja", "adapt_kernels.ops")),
    Rule("recipes-use-public-names", "adapt_recipes/*", ("triton",)),
    Rule("tasks-below-models", "adapt_recipes/tasks/*", tuple(f"adapt_recipes.{n}" for n in ("models", *MODEL_USERS))),
    Rule(
        "models-below-their-users",
        "adapt_recipes/models.py|adapt_recipes/adapters.py|adapt_recipes/storage.py",
        tuple(f"adapt_recipes.{n}" for n in MODEL_USERS),
    ),
    Rule("adapters-below-models", "adapt_recipes/adapters.py|adapt_recipes/storage.py", ("adapt_recipes.models",)),
    Rule("evaluation-below-training", "adapt_recipes/evaluation/*", ("adapt_recipes.training",)),
    Rule(
        "programs-below-commands",
        "adapt_recipes/*/*|adapt_recipes/models.py",
        ("typer", *PROGRAMS, "adapt_recipes.dial"),
        exempt="adapt_recipes/dial/*",
    ),
    Rule("page-below-commands", "adapt_recipes/dial/*", ("typer", *(f"adapt_recipes.{n}" for n in COMMANDS))),
    Rule("gradio-only-on-the-page", "*", ("gradio",), exempt=PAGE),
    Rule("no-pickle", "*", ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")),
]
BACKEND_FILES = ("reference", "triton_kernel", "native")


@dataclass(frozen=True)
class Import:
    target: str  # dotted module, or module.name for a from-import
    line: int
    is_from: bool = False


def package_files(root):
    """Yields (path, "package/file.py", dotted module) of every Python file in both packages."""
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder)
            parts = [package, *inner.with_suffix("").parts]
            yield path, f"{package}/{inner.as_posix()}", ".".join(parts)


def imports_of(tree, module):
    """Every import at any depth, relative ones made absolute, importlib and __import__ with a literal included."""
    package = module.removesuffix(".__init__") if module.endswith(".__init__") else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, is_from=True)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            name = node.args[0].value
            if called.rpartition(".")[2] in ("import_module", "__import__") and isinstance(name, str):
                if name.startswith("."):
                    depth = len(name) - len(name.lstrip("."))
                    anchor = package.split(".")[: len(package.split(".")) - depth + 1]
                    name = ".".join([*anchor, name.lstrip(".")])
                yield Import(name, node.lineno)


def is_below(target, prefix):
    return target == prefix or target.startswith(prefix + ".")


def private_op_imports(root, file, found):
    """An op may import another op's package, never a file inside it; backend files never import each other."""
    match = re.match(r"adapt_kernels/ops/(\w+)/(\w+)\.py", file)
    for item in found:
        parts = item.target.split(".")
        if parts[:2] != ["adapt_kernels", "ops"] or len(parts) < 4:
            continue
        op, name = parts[2:4]
        if not (root / "adapt_kernels/ops" / op / f"{name}.py").exists():
            continue
        if match is None or match[1] != op:
            yield item.line, "op-files-are-private"
        elif match[2] in BACKEND_FILES and name in BACKEND_FILES:
            yield item.line, "backends-are-independent"


def recipe_violations(tree, found, public):
    """Recipes see the engine as `import adapt_kernels` or `from adapt_kernels import <name in __all__>`."""
    for item in found:
        if not is_below(item.target, "adapt_kernels") or item.target == "adapt_kernels":
            continue
        if not item.is_from or item.target.removeprefix("adapt_kernels.") not in public:
            yield item.line, "recipes-use-public-names"
    aliases = {"adapt_kernels"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname for a in node.names if a.name == "adapt_kernels" and a.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            if node.attr not in public:
                yield node.lineno, "recipes-use-public-names"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) >= 2:
            name = node.args[1]
            if (
                isinstance(node.args[0], ast.Name)
                and node.args[0].id in aliases
                and (not isinstance(name, ast.Constant) or name.value not in public)
            ):
                yield node.lineno, "recipes-use-public-names"


def unsafe_loaders(tree, found):
    """torch's own serialisation is pickle; remote code is somebody else's program."""
    torch_names = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torch_names |= {a.asname for a in node.names if a.name in ("torch", "torch.serialization") and a.asname}
    for item in found:
        if item.target in ("torch.load", "torch.save", "torch.serialization.load", "torch.serialization.save"):
            yield item.line, "no-torch-pickle"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
            owner = ast.unparse(node.value)
            if owner in torch_names or owner == "torch.serialization":
                yield node.lineno, "no-torch-pickle"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, "no-pickle"
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            yield node.value.lineno, "no-remote-code"
        elif isinstance(node, ast.Constant) and node.value in ("trust_remote_code", "--trust-remote-code"):
            yield node.lineno, "no-remote-code"


def violations(root, public):
    problems = []
    for path, file, module in package_files(root):
        tree = ast.parse(path.read_text("utf-8"), str(path))
        found = list(imports_of(tree, module))
        hits = [
            (item.line, rule.name)
            for rule in RULES
            if rule.covers(file)
            for item in found
            if any(is_below(item.target, prefix) for prefix in rule.banned)
        ]
        if file.startswith("adapt_kernels/"):
            hits += private_op_imports(root, file, found)
        else:
            hits += recipe_violations(tree, found, public)
        hits += unsafe_loaders(tree, found)
        problems += [f"{file}:{line}: {name}" for line, name in sorted(set(hits))]
    return problems


def public_names():
    """What recipes may import: `adapt_kernels.__all__`, and that of the adapter to TRL, which need not be installed."""
    import adapt_kernels

    tree = ast.parse((ROOT / "adapt_kernels/trl/__init__.py").read_text("utf-8"))
    listed = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign))
    return {*adapt_kernels.__all__, *(f"trl.{name}" for name in listed)}


def test_no_upward_import():

    files = {file for _, file, _ in package_files(ROOT)}
    assert {"adapt_kernels/__init__.py", "adapt_kernels/modes.py", "adapt_recipes/__init__.py"} <= files
    problems = violations(ROOT, public_names())
    assert not problems, "\n".join(problems)


def test_every_op_has_a_contract_a_reference_and_a_test():
    ops = [folder for folder in (ROOT / "adapt_kernels/ops").iterdir() if any(folder.glob("*.py"))]
    assert ops
    for op in ops:
        assert (op / "__init__.py").exists() and (op / "reference.py").exists(), op.name
        assert list((ROOT / "tests/ops").glob(f"test_{op.name}*.py")), f"tests/ops/test_{op.name}.py is missing"


def test_names_say_what_a_file_does():
    banned = {"utils", "util", "helper", "helpers", "misc", "manager", "common", "magic", "turbo"}
    for folder in ("adapt_kernels", "python", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            words = {word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.split("_")}
            assert not words & banned, path


PLANTED = [
    ("adapt_kernels/modes.py", "import adapt_recipes", "engine-below-recipes"),
    ("adapt_kernels/modes.py", "def f():\n    from transformers import AutoTokenizer", "transformers-only-in-hf"),
    ("adapt_kernels/presets.py", "import transformers.utils", "transformers-only-in-hf"),
    ("adapt_kernels/dispatch.py", "from importlib import *\nimport_module('transformers')", "transformers-only-in-hf"),
    ("adapt_kernels/modes.py", "from .hf import patch", "modes-import-no-engine"),
    ("adapt_kernels/hf/call/patch.py", "from trl import GRPOTrainer", "trl-only-in-adapter"),
    ("adapt_kernels/hf/call/patch.py", "import vllm", "vllm-only-in-adapter"),
    ("adapt_kernels/ops/mode_sample/__init__.py", "from ...hf import patch", "ops-below-hf"),
    ("adapt_kernels/ops/mode_sample/__init__.py", "from ... import hf", "ops-below-hf"),
    ("adapt_kernels/ops/steer/__init__.py", "from ...program.rules import Rule", "ops-below-programs"),
    ("adapt_kernels/program/rules.py", "def f():\n    from ..hf import patch", "programs-below-hf"),
    ("adapt_kernels/program/presets.py", "from transformers import AutoTokenizer", "transformers-only-in-hf"),
    ("adapt_kernels/ops/mode_sample/__init__.py", "def f():\n    import triton", "triton-in-its-own-files"),
    ("adapt_kernels/ops/mode_sample/reference.py", "import triton.language as tl", "reference-is-plain"),
    ("adapt_kernels/ops/mode_sample/reference.py", "from adapt_kernels.native import jit", "reference-is-plain"),
    ("adapt_kernels/ops/mode_sample/reference.py", "from . import triton_kernel", "backends-are-independent"),
    ("adapt_kernels/ops/branch/__init__.py", "from ..mode_sample.reference import sample", "op-files-are-private"),
    ("adapt_kernels/hf/call/patch.py", "from ...ops.mode_sample import reference", "op-files-are-private"),
    ("adapt_kernels/hf/call/patch.py", "def f():\n    import triton", "hf-uses-ops-only"),
    ("adapt_kernels/hf/call/patch.py", "from ...native.jit import build", "hf-uses-ops-only"),
    ("adapt_kernels/hf/kv/batch.py", "from ..loop.sampler import TokenSelector", "kv-below-loop"),
    ("adapt_kernels/hf/loop/decode_loop.py", "def f():\n    from ..call import plan", "loop-below-call"),
    ("adapt_kernels/modes.py", "from adapt_kernels.native import jit", "jit-only-where-it-runs"),
    ("adapt_kernels/ops/mode_sample/__init__.py", "from ...native.jit import load", "jit-only-where-it-runs"),
    ("adapt_kernels/trl/trainer.py", "from adapt_kernels.native import jit_cuda", "jit-only-where-it-runs"),
    ("adapt_kernels/ops/mode_sample/native.py", "from . import reference", "backends-are-independent"),
    ("adapt_kernels/native/jit.py", "def f():\n    import torch", "build-needs-no-torch"),
    ("adapt_kernels/native/jit_cuda.py", "import torch", "build-needs-no-torch"),
    ("adapt_kernels/native/toolchain.py", "import pybind11", "build-needs-no-torch"),
    ("adapt_kernels/native/kernels.py", "from ..ops import token_rows", "native-below-ops"),
    ("python/adapt_recipes/tasks/chain_sum.py", "from adapt_recipes.models import load", "tasks-below-models"),
    ("python/adapt_recipes/tasks/chain_sum.py", "from ..training import sft", "tasks-below-models"),
    ("python/adapt_recipes/models.py", "from adapt_recipes import evaluation", "models-below-their-users"),
    ("python/adapt_recipes/evaluation/report.py", "from ..training.curve import Curve", "evaluation-below-training"),
    ("python/adapt_recipes/training/rl.py", "def f():\n    import typer", "programs-below-commands"),
    ("python/adapt_recipes/models.py", "from .demo import run_demo", "programs-below-commands"),
    ("python/adapt_recipes/models.py", "from .dial.served import Served", "programs-below-commands"),
    ("python/adapt_recipes/dial/served.py", "from ..terminal import console", "page-below-commands"),
    ("python/adapt_recipes/dial/reply.py", "def f():\n    import gradio", "gradio-only-on-the-page"),
    ("python/adapt_recipes/demo.py", "import adapt_kernels.hf", "recipes-use-public-names"),
    ("python/adapt_recipes/demo.py", "from adapt_kernels.modes import Modes", "recipes-use-public-names"),
    ("python/adapt_recipes/demo.py", "from adapt_kernels import modes", "recipes-use-public-names"),
    ("python/adapt_recipes/demo.py", "import adapt_kernels as ak\nak._state(1)", "recipes-use-public-names"),
    ("python/adapt_recipes/demo.py", "import adapt_kernels as ak\ngetattr(ak, 'hf')", "recipes-use-public-names"),
    ("python/adapt_recipes/demo.py", "def f():\n    import pickle", "no-pickle"),
    ("python/adapt_recipes/demo.py", "import numpy as np\nnp.load('a', allow_pickle=True)", "no-pickle"),
    ("python/adapt_recipes/demo.py", "import torch as t\nt.load('x')", "no-torch-pickle"),
    ("python/adapt_recipes/demo.py", "from torch import save", "no-torch-pickle"),
    ("adapt_kernels/hf/call/patch.py", "load(path, trust_remote_code=False)", "no-remote-code"),
    ("adapt_kernels/hf/call/patch.py", "load(path, **{'trust_remote_code': True})", "no-remote-code"),
]
CLEAN = {
    "adapt_kernels/__init__.py": "def f():\n    from .hf import patch",
    "adapt_kernels/modes.py": "import json",
    "adapt_kernels/hf/__init__.py": "import transformers\nfrom ..ops.mode_sample import mode_sample",
    "adapt_kernels/hf/call/patch.py": "from transformers import GenerationMixin\nfrom ...modes import Modes",
    "adapt_kernels/ops/__init__.py": "",
    "adapt_kernels/ops/mode_sample/__init__.py": "from . import reference\nfrom ...dispatch import choose",
    "adapt_kernels/ops/mode_sample/reference.py": "import torch\nfrom ..philox import uniform",
    "adapt_kernels/ops/mode_sample/triton_kernel.py": "import triton",
    "adapt_kernels/ops/mode_sample/native.py": "import torch\nfrom adapt_kernels.native import jit",
    "adapt_kernels/ops/branch/__init__.py": "from ..mode_sample import mode_sample",
    "adapt_kernels/trl/trainer.py": "import trl\nimport transformers",
    "python/adapt_recipes/__init__.py": "import adapt_kernels as ak\nfrom adapt_kernels import Modes\nak.patch",
    "python/adapt_recipes/demo.py": "import safetensors.torch as st\nst.load('x')\nfrom . import tasks",
    "python/adapt_recipes/commands.py": "import typer\nfrom adapt_recipes.demo import run_demo",
    "python/adapt_recipes/evaluation/frontier.py": "from adapt_recipes.models import load",
    "python/adapt_recipes/training/rl.py": "from ..evaluation import frontier\nfrom ..tasks import families",
}


def plant(root, files):
    for file, source in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(source, "utf-8")


def test_checker_accepts_a_clean_tree(tmp_path):
    plant(tmp_path, CLEAN)
    assert violations(tmp_path, {"Modes", "patch"}) == []


@pytest.mark.parametrize(("file", "source", "rule"), PLANTED, ids=[f"{r}-{i}" for i, (_, _, r) in enumerate(PLANTED)])
def test_checker_catches(tmp_path, file, source, rule):
    plant(tmp_path, {**CLEAN, file: source})
    found = violations(tmp_path, {"Modes", "patch"})
    shipped = file.removeprefix("python/")
    assert [p.split(":")[0] for p in found] == [shipped] * len(found)
    assert any(p.endswith(f": {rule}") for p in found), found
