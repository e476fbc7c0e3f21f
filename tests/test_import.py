"""`import adapt_kernels` is silent, fast, leaves no trace, and needs neither transformers nor triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRANSFORMERS = ("transformers", "tokenizers")
# Finders that do not see the named packages: find_spec returns None, as where they are not installed.
HIDE = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, *args)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def run(tmp_path):
    """Runs code in a new interpreter whose home, cache and working folders are empty."""
    folders = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "ADAPT_KERNELS_CACHE", "TMPDIR", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")}
    env |= {name: str(folder) for name, folder in folders.items() if name != "cwd"}
    env |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"),
        "OMP_NUM_THREADS": "1",
    }

    def run(code, hidden=()):
        code = (HIDE.format(hidden=tuple(hidden)) if hidden else "") + code
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folders["cwd"], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done

    run.folders = list(folders.values())
    return run


def test_import_is_silent_and_leaves_no_files(run):
    done = run("import adapt_kernels")
    assert (done.stdout, done.stderr) == ("", "")
    assert [str(path) for folder in run.folders for path in folder.rglob("*")] == []


def test_import_loads_nothing_heavy(run):
    code = (
        "import sys, adapt_kernels\n"
        "heavy = {'torch', 'transformers', 'triton', 'numpy', 'safetensors', 'trl', 'vllm', 'adapt_recipes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code).stdout == "[]\n"


def test_import_is_fast(run):
    code = "import time; t = time.process_time(); import adapt_kernels; print(time.process_time() - t)"
    assert min(float(run(code).stdout) for _ in range(3)) < 0.5


def test_every_public_name_is_there(run):
    code = (
        "import adapt_kernels as ak\n"
        "assert len(set(ak.__all__)) == len(ak.__all__)\n"
        "assert set(ak.__all__) <= set(dir(ak))\n"
        "for name in ak.__all__: getattr(ak, name)\n"
        "try: ak.no_such_name\n"
        "except AttributeError as error: print(error)"
    )
    assert "no_such_name" in run(code).stdout


def test_star_import_gives_the_public_names(run):
    run("from adapt_kernels import *\nimport adapt_kernels as ak\nassert set(ak.__all__) <= set(globals())")


def test_unknown_name_loads_nothing_heavy(run):
    code = "import sys, adapt_kernels as ak\nhasattr(ak, 'nothing')\nprint('torch' in sys.modules)"
    assert run(code).stdout == "False\n"


@pytest.mark.parametrize("hidden", [("triton",), TRANSFORMERS, ("triton", *TRANSFORMERS)])
def test_engine_works_without(run, hidden):
    code = (
        "import adapt_kernels as ak, torch\n"
        "modes = ak.Modes(fast=5, slow=6)\n"
        # Named, because the caches here are empty: "auto" would compile.
        "seeds = torch.tensor([1, 2, 3])\n"
        "s = ak.mode_sample(torch.zeros(3, 8), modes=modes, at_mode=True, seeds=seeds, backend='reference')\n"
        "assert set(s.tokens.tolist()) <= {5, 6}, s.tokens\n"
        "found = ak.backends()\n"
        "assert found['reference'] is None, found\n"
        f"assert not {'triton' in hidden} or 'pip install triton' in found['triton'], found\n"
        f"assert not set({hidden!r}) & set(sys.modules)\n"
    )
    done = run(code, hidden)
    assert (done.stdout, done.stderr) == ("", "")


def test_patch_without_transformers_says_how_to_get_it(run):
    code = (
        "import adapt_kernels as ak\n"
        "try: ak.patch(object(), ak.Modes(fast=5, slow=6))\n"
        "except ImportError as error: print(error)"
    )
    message = run(code, TRANSFORMERS).stdout
    assert "transformers" in message and "pip install" in message


def test_recipes_task_needs_only_the_engine(run):
    code = (
        "import adapt_recipes as ar\n"
        "problems = ar.problems(4, seed=3)\n"
        "assert all(isinstance(ar.grade(p, p.answer), bool) for p in problems)\n"
        "assert ar.checkpoint_path('sft').is_dir()\n"
    )
    assert run(code, ("typer", "rich", "matplotlib", "gguf", "click")).stdout == ""
