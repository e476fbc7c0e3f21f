"""`make hub-kernel`: its layout is what the kernels hub asks for, and its ops draw the installed package's tokens."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Runs both copies in one process. argv: the repository, and "kernels" or "importlib", what loads it.
COMPARE = """
import importlib.util, json, sys
from pathlib import Path

import torch

import adapt_kernels as ak

repository = Path(sys.argv[1])
if sys.argv[2] == "kernels":
    from kernels import get_local_kernel

    hub = get_local_kernel(repository, backend="cpu")
else:  # as `kernels` does
    variant = repository / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    hub = importlib.util.module_from_spec(spec)
    sys.modules[name] = hub
    spec.loader.exec_module(hub)

logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
settings = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "seeds": 7, "modes": (3, 5), "at_mode": torch.arange(64) < 8}
ours, theirs = (each.mode_sample(logits, **settings, mode_bias=1.5, backend="reference") for each in (ak, hub))
fast = hub.mode_sample(logits, **{**settings, "modes": hub.Modes(fast=3, slow=5)}, mode_bias=1.5)
branched = hub.branch(ours.modes, torch.arange(64) // 4, torch.tensor([2, 9, 1]), 16)
kept = hub.kv_scores("key_norm", torch.randn(1, 2, 5, 4))
value = torch.randn(2, 1, 3, 4)
read = hub.segment_attention(torch.randn(2, 2, 4), [hub.Segment(value, value, None)])
print(json.dumps({
    "module": hub.__name__, "equal": [torch.equal(a, b) for a, b in zip(ours, theirs)], "auto": fast.tokens.tolist(),
    "tokens": ours.tokens.tolist(), "native": hub.backends()["native"], "seed": hub.row_seed(7, 3) == ak.row_seed(7, 3),
    "shapes": [list(branched.order.shape), list(kept.shape), list(read.shape)],
    "ops": hub.mode_sample is not ak.mode_sample and hasattr(getattr(torch.ops, hub.__name__), "mode_sample"),
}))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "kernel"
    subprocess.run([sys.executable, str(ROOT / ".ci/hub_kernel.py"), str(folder)], check=True, capture_output=True)
    return folder


def variants(repository):
    return sorted((repository / "build").iterdir())


def test_layout_has_a_variant_for_every_backend_and_the_sources(repository):
    general = tomllib.loads((repository / "build.toml").read_text("utf-8"))["general"]
    assert [v.name for v in variants(repository)] == [f"torch-{name}" for name in sorted(general["backends"])]
    assert (repository / "LICENSE").is_file()
    told = [json.loads((v / "metadata.json").read_text("utf-8")) for v in variants(repository)]
    assert len({each["id"] for each in told}) == 2 and all(each["id"].isidentifier() for each in told)
    source = repository / "torch-ext" / "adapt_kernels"
    for variant, each in zip(variants(repository), told, strict=True):
        files = {p.relative_to(variant).as_posix(): p.read_bytes() for p in variant.rglob("*.py")}
        assert files == {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*.py")}
        assert set(files) == set(each["digest"]["files"])
        assert {key: each[key] for key in ("name", "version", "license")} == {
            key: general[key] for key in ("name", "version", "license")
        }


def test_sources_import_relatively_or_what_the_hub_allows(repository):
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in variants(repository)[0].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert {name.partition(".")[0] for name in names} <= allowed, path
        assert path.stem != "native" and "native" not in path.parts


def compared(repository, loader):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", COMPARE, str(repository), loader]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("loader", ["importlib", "kernels"])
def test_tokens_are_the_installed_packages(repository, loader):
    if loader == "kernels" and importlib.util.find_spec("kernels") is None:
        pytest.skip("the package kernels is not installed: pip install kernels")
    got = compared(repository, loader)
    assert got["equal"] == [True] * 8
    assert got["auto"] == got["tokens"] and got["seed"]
    assert got["native"] == "this copy of the ops comes without C++: pip install adapt_kernels"
    assert got["shapes"] == [[64], [1, 2, 5], [2, 2, 4]]
    assert got["module"].startswith("_adapt_kernels_cpu_") and got["ops"]


def test_kernels_reads_the_description_and_the_digests(repository):
    rust = pytest.importorskip("kernels._rust", reason="the package kernels is not installed: pip install kernels")
    rust.Build.open(repository)  # raises where build.toml has what it does not know
    for variant in variants(repository):
        metadata = rust.Metadata.read_from_file(variant / "metadata.json")
        metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, variant))


def test_an_import_that_the_hub_does_not_allow_is_refused():
    spec = importlib.util.spec_from_file_location("hub_kernel", ROOT / ".ci/hub_kernel.py")
    hub_kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub_kernel)
    with pytest.raises(ValueError, match=r"adapt_kernels/ops/new.py:1 imports numpy; the hub allows torch and triton"):
        hub_kernel.relative(Path("ops/new.py"), "import numpy as np\n")
    text = "def f():\n    from adapt_kernels.philox import uniform\n"
    assert hub_kernel.relative(Path("ops/new.py"), text) == "def f():\n    from ..philox import uniform\n"
