"""Mutation run: seeded mutants of adapt_kernels/hf, made by cosmic-ray's operators; lists those that no test kills.

    pip install cosmic-ray
    python tests/hf/mutants.py --count 100 --seed 0 --out survivors.md

Each mutant gets the default tests of tests/hf, those files first that share most words with what it changes, until one
fails or a budget of processor time is spent; the survivors then get a larger budget.
"""

import argparse
import ast
import itertools
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider
from mutation_run import ROOT, Run

SOURCES = ROOT / "adapt_kernels" / "hf"
# Mutants that once survived, always run: (part of the line, operator).
_ALWAYS = (
    ("self._compact_at * slots", "ReplaceComparisonOperator_LtE_Lt"),
    ("min_tokens_to_keep != 1", "ReplaceComparisonOperator_NotEq_Lt"),
)


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


def main() -> int:
    """The command line. Exit status 1 when a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="so many of them, which an earlier run has had")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", type=float, default=60.0, help="processor seconds of tests per mutant at first")
    parser.add_argument("--budget-of-survivors", type=float, default=1800.0)
    parser.add_argument("--only", default="", help="a regular expression on 'file:line operator'")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--out", type=Path, help="a Markdown file for the survivors")
    given = parser.parse_args()
    mutants = [m for m in all_mutants() if re.search(given.only, f"{m.file}:{m.line} {m.operator}")]
    chosen = sample(mutants, given.count, given.seed)[given.skip :]
    print(f"{len(chosen)} of {len(mutants)} mutants, seed {given.seed}", flush=True)
    if given.list:
        for mutant in chosen:
            print(f"{mutant.file}:{mutant.line} {mutant.operator}: {mutant.difference()}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(given.processes, Path(folder), given.budget)
        run.check_unmutated()
        survivors = run.survivors_of(chosen)
        if given.budget_of_survivors > given.budget:
            print(f"{len(survivors)} survived at first; these get more tests", flush=True)
            run.budget = given.budget_of_survivors
            survivors = run.survivors_of(survivors)
    lines = [f"- `{m.file}:{m.line}` {m.operator}: `{m.difference()}`" for m in survivors]
    print(f"{len(lines)} of {len(chosen)} survived")
    if given.out:
        given.out.write_text("\n".join([f"{len(lines)} of {len(chosen)} mutants survived (seed {given.seed})", *lines]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
