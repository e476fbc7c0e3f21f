"""Mutation run: seeded mutants of adapt_kernels/hf, made by cosmic-ray's operators; lists those that no test kills.

    pip install cosmic-ray
    python tests/hf/mutants.py --count 100 --seed 0 --out survivors.md

Each mutant gets a copy of the tree and the default tests of tests/hf, those first that name its module, until one
fails. Test processes are forked from this one, which has imported torch and transformers but not the package.
"""

import argparse
import ast
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401 - imported once, for all forks
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "adapt_kernels" / "hf"
# Mutants that once survived, always run: (part of the line, operator).
_ALWAYS = (
    ("self._compact_at * slots", "ReplaceComparisonOperator_LtE_Lt"),
    ("min_tokens_to_keep != 1", "ReplaceComparisonOperator_NotEq_Lt"),
)
_COPIED = ("adapt_kernels", "python", "tests", "csrc", "pyproject.toml", "setup.py", "README.md", "CMakeLists.txt")


@dataclass(frozen=True)
class Mutant:
    """One change of one file; line counts from 1."""

    file: str  # below the root
    operator: str
    occurrence: int
    line: int
    column: int

    def source(self) -> str:
        """The whole mutated file."""
        operator = OperatorProvider()[self.operator]()
        return mutate_code((ROOT / self.file).read_text(), operator, self.occurrence)

    def compiles(self) -> bool:
        """Whether the mutated file is Python at all."""
        try:
            ast.parse(self.source())
        except SyntaxError:
            return False
        return True

    def difference(self) -> str:
        """The changed line, before and after."""
        old, new = (ROOT / self.file).read_text().splitlines(), self.source().splitlines()
        changed = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(new) - 1)
        return f"{old[changed].strip()}  ->  {new[changed].strip()}"


def all_mutants() -> list[Mutant]:
    """Every mutant of the adapter, type annotations left alone: they do nothing."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        code = path.read_text()
        nodes, annotations = list(ast_nodes(get_ast(code))), _annotations(code)
        for name in OperatorProvider():
            operator = OperatorProvider()[name]
            if operator.arguments():
                continue
            places = [start for node in nodes for start, _ in operator().mutation_positions(node)]
            found += [
                Mutant(str(path.relative_to(ROOT)), name, occurrence, line, column)
                for occurrence, (line, column) in enumerate(places)
                if not any(first <= (line, column) < last for first, last in annotations)
            ]
    return found


def sample(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of different places, each place as likely as any other, and those of `_ALWAYS`."""
    places: dict[tuple, list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault((mutant.file, mutant.line, mutant.column), []).append(mutant)
    draw = random.Random(seed)
    orders = (draw.sample(places[place], len(places[place])) for place in draw.sample(sorted(places), len(places)))
    working = (next(filter(Mutant.compiles, order), None) for order in orders)
    drawn = list(itertools.islice(filter(None, working), count))
    lines = {file: (ROOT / file).read_text().splitlines() for file in {m.file for m in mutants}}
    known = [m for m in mutants for text, name in _ALWAYS if m.operator == name and text in lines[m.file][m.line - 1]]
    return [*(mutant for mutant in known if mutant not in drawn), *drawn][:count]


def _annotations(code: str) -> list[tuple]:
    """[start, end) of each annotation, as (line, column)."""
    notes = []
    for node in ast.walk(ast.parse(code)):
        notes += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in notes if isinstance(n, ast.AST)]


def tests_of(source: str) -> list[str]:
    """All test files of the adapter, those that speak most of this source's names first; the fuzzer last."""
    code = (ROOT / source).read_text()
    names = {Path(source).stem} | set(re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE))

    def rank(path: Path):
        words = re.findall(r"\w+", path.read_text())
        alike = len(set(Path(source).stem.split("_")) & set(path.stem.split("_")))
        return (path.stem == "test_fuzz", -alike, -sum(word in names for word in words), path.stem)

    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests/hf").glob("test_*.py"), key=rank)]


def _tests_pass(tree: Path, source: str, log: Path) -> bool:
    """In a forked child: the default tests of a tree, up to the first failure."""
    os.setsid()
    sys.path.remove(str(Path(__file__).parent))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "python")]
    os.environ["PYTHONPATH"] = f"{tree}:{tree / 'python'}"
    torch.set_num_threads(1)
    options = ["-x", "-q", "--benchmark-disable", "-m", "not full and not gpu", "-p", "no:cacheprovider", "-n", "0"]
    return pytest.main([*options, *tests_of(source)]) == 0


class Run:
    """Tests mutants in `processes` trees at once."""

    def __init__(self, processes: int, seconds: float, folder: Path):
        self._seconds, self._folder = seconds, folder
        self._free = [folder / f"tree{i}" for i in range(processes)]
        self._busy: dict[int, tuple[Mutant, Path, float]] = {}
        self.survivors: list[Mutant] = []
        for tree in self._free:
            _copy_tree(tree)

    def check_unmutated(self) -> None:
        """Raises RuntimeError, with the end of the tests' output, where they fail without any mutation."""
        tree = self._free[0]
        child = self._fork(tree, "adapt_kernels/hf/call/generate.py")
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise RuntimeError("the tests fail without any mutation:\n" + self._log(tree).read_text()[-3000:])

    def add(self, mutant: Mutant) -> None:
        """Start a mutant's tests, once a tree is free."""
        while not self._free:
            self._collect()
        tree = self._free.pop()
        (tree / mutant.file).write_text(mutant.source())
        self._busy[self._fork(tree, mutant.file)] = (mutant, tree, time.monotonic())

    def finish(self) -> None:
        """Wait for all."""
        while self._busy:
            self._collect()

    def _log(self, tree: Path) -> Path:
        return self._folder / f"{tree.name}.log"

    def _fork(self, tree: Path, source: str) -> int:
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if _tests_pass(tree, source, self._log(tree)) else 1)
            finally:
                os._exit(2)
        return child

    def _collect(self) -> None:
        time.sleep(0.5)
        for child, (mutant, tree, started) in list(self._busy.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            spent = time.monotonic() - started
            late = not ended and spent > self._seconds
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or late:
                del self._busy[child]
                self._note(mutant, late, status, spent)
                shutil.copy(ROOT / mutant.file, tree / mutant.file)
                self._free.append(tree)

    def _note(self, mutant: Mutant, late: bool, status: int, seconds: float) -> None:
        survived = not late and os.waitstatus_to_exitcode(status) == 0
        if survived:
            self.survivors.append(mutant)
        what = "SURVIVED" if survived else "timed out" if late else "killed"
        print(f"{what} in {seconds:.0f} s: {mutant.file}:{mutant.line} {mutant.difference()}", flush=True)


def _copy_tree(tree: Path) -> None:
    tree.mkdir(parents=True)
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def main() -> int:
    """The command line. Exit status 1 when a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1200.0, help="per mutant; one that takes longer is killed")
    parser.add_argument("--only", default="", help="a regular expression on 'file:line operator'")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--out", type=Path, help="a Markdown file for the survivors")
    given = parser.parse_args()
    mutants = [m for m in all_mutants() if re.search(given.only, f"{m.file}:{m.line} {m.operator}")]
    chosen = sample(mutants, given.count, given.seed)
    print(f"{len(chosen)} of {len(mutants)} mutants, seed {given.seed}", flush=True)
    if given.list:
        for mutant in chosen:
            print(f"{mutant.file}:{mutant.line} {mutant.operator}: {mutant.difference()}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(given.processes, given.seconds, Path(folder))
        run.check_unmutated()
        for mutant in chosen:
            run.add(mutant)
        run.finish()
    lines = [f"- `{m.file}:{m.line}` {m.operator}: `{m.difference()}`" for m in run.survivors]
    print(f"{len(lines)} of {len(chosen)} survived")
    if given.out:
        given.out.write_text("\n".join([f"{len(lines)} of {len(chosen)} mutants survived (seed {given.seed})", *lines]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
