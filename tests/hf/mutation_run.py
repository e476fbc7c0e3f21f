"""Runs the adapter's tests on copies of the tree, each in a fork of this process: see mutants.py."""

import ast
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401 - imported once, for all forks

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("adapt_kernels", "python", "tests", "csrc", "pyproject.toml", "setup.py", "README.md", "CMakeLists.txt")
_MEMORY = 8 << 30
_OPTIONS = ["-x", "-q", "--benchmark-disable", "-m", "not full and not gpu", "-p", "no:cacheprovider", "-n", "0"]


class Run:
    """Tests mutants in `processes` trees at once.

    budget: processor seconds of tests per mutant. One that takes four times as long on the clock hangs: it is killed.
    tests_of: what pytest is told for a mutant; None: the adapter's tests.
    """

    def __init__(self, processes: int, folder: Path, budget: float, tests_of=None):
        self._folder, self.budget, self._tests_of = folder, budget, tests_of or adapter_tests
        self._free = [folder / f"tree{i}" for i in range(processes)]
        self._busy: dict[int, tuple] = {}
        self.survivors: list = []
        for tree in self._free:
            _copy_tree(tree)

    def check_unmutated(self, tests: Sequence[str] = ("tests/hf",)) -> None:
        """Raises RuntimeError, with the end of the tests' output, where they fail without any mutation."""
        tree = self._free[0]
        child = self._fork(tree, list(tests))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise RuntimeError("the tests fail without any mutation:\n" + self._log(tree).read_text()[-3000:])

    def survivors_of(self, mutants: list) -> list:
        """Test them all."""
        self.survivors = []
        for mutant in mutants:
            while not self._free:
                self._collect()
            self._start(mutant, self._free.pop())
        while self._busy:
            self._collect()
        return self.survivors

    def _killer(self, tree: Path) -> str:
        """The test that failed, or what pytest said last."""
        lines = self._log(tree).read_text().splitlines() or ["no output"]
        failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return failed[0] if failed else lines[-1]

    def _log(self, tree: Path) -> Path:
        return self._folder / f"{tree.name}.log"

    def _start(self, mutant, tree: Path) -> None:
        (tree / mutant.file).write_text(mutant.source())
        self._busy[self._fork(tree, self._tests_of(mutant))] = (mutant, tree, time.monotonic())

    def _fork(self, tree: Path, tests: list[str]) -> int:
        child = os.fork()
        if child == 0:
            try:
                os._exit(int(_tests_fail(tree, tests, self._log(tree), _Budget(self.budget))))
            finally:
                os._exit(2)
        return child

    def _collect(self) -> None:
        time.sleep(0.5)
        for child, (mutant, tree, started) in list(self._busy.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            spent = time.monotonic() - started
            late = not ended and spent > 4 * self.budget + 60
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or late:
                del self._busy[child]
                survived = not late and os.waitstatus_to_exitcode(status) == 0
                self.survivors += [mutant] * survived
                what = "SURVIVED" if survived else "timed out" if late else f"killed by {self._killer(tree)}"
                place = f"{mutant.file}:{mutant.line} {mutant.difference()}"
                print(f"{what} in {spent:.0f} s: {place}", flush=True)
                shutil.copy(ROOT / mutant.file, tree / mutant.file)
                self._free.append(tree)


class _Budget:
    """A pytest plugin: no further test after so many seconds of processor time."""

    def __init__(self, seconds: float):
        self._end, self.spent = time.process_time() + seconds, False

    def pytest_runtest_teardown(self, item):
        self.spent = time.process_time() > self._end
        if self.spent:
            item.session.shouldstop = "the budget is spent"


def _tests_fail(tree: Path, tests: list[str], log: Path, budget: _Budget) -> bool:
    """In a forked child: run tests up to the first failure or to the end of the budget."""
    os.setsid()
    # A mutant may ask for any amount.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.path[:] = [path for path in sys.path if path not in (str(Path(__file__).parent), str(ROOT))]
    sys.path[:0] = [str(tree), str(tree / "python")]
    os.environ["PYTHONPATH"] = f"{tree}:{tree / 'python'}"
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    os.chdir(tree)
    torch.set_num_threads(1)
    status = pytest.main([*_OPTIONS, *tests], plugins=[budget])
    # Pytest calls it interrupted, too, when a file cannot be imported.
    return not (status == pytest.ExitCode.OK or (status == pytest.ExitCode.INTERRUPTED and budget.spent))


def adapter_tests(mutant) -> list[str]:
    """The adapter's test files; first those that share most with the mutated line, its function and its file."""
    code = (ROOT / mutant.file).read_text()
    functions = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    inside = [n for n in functions if n.lineno <= mutant.line <= n.end_lineno]
    texts = [code.splitlines()[mutant.line - 1], *(ast.get_source_segment(code, n) for n in inside), mutant.file, code]
    files = {
        path: Counter(_words(path.stem + " " + path.read_text())) for path in (ROOT / "tests/hf").rglob("test_*.py")
    }
    spread = Counter(word for words in files.values() for word in words)

    def relevance(path: Path) -> float:
        words = files[path]
        shares = (
            sum(math.log(len(files) / spread[w]) * math.log1p(words[w]) for w in set(_words(text)) if w in words)
            / math.sqrt(len(set(_words(text))) or 1)
            for text in texts
        )
        return sum(shares) / math.sqrt(words.total())

    ranked = sorted(files, key=lambda path: (path.stem.startswith("test_fuzz"), -relevance(path), path.stem))
    return [str(path.relative_to(ROOT)) for path in ranked]


def _words(text: str) -> list[str]:
    """Identifiers and their parts."""
    return [part for word in re.findall(r"[A-Za-z_]{3,}", text) for part in {word, *word.split("_")} if len(part) > 2]


def _copy_tree(tree: Path) -> None:
    tree.mkdir(parents=True)
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
