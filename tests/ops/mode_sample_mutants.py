"""Mutation run of the sampler: breaks its Triton kernels and its C++ in known ways; lists what no test notices.

    python tests/ops/mode_sample_mutants.py

Triton's cases run in its interpreter; the C++ is compiled anew for every mutant, into a cache of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mode_sample_mutants_draw import MUTANTS as DRAW
from mode_sample_mutants_native import MUTANTS as NATIVE
from mode_sample_mutants_triton import MUTANTS as READ
from mutant import ROOT, Mutant

MUTANTS = [*READ, *DRAW, *NATIVE]
# A mutant that compiles to nothing would count as noticed.
_COMPILE = ["c++", "-std=c++17", "-march=native", "-fopenmp", "-fsyntax-only", "-w", "-x", "c++", "-"]


def check_compiles(mutant: Mutant) -> None:
    """Raises CalledProcessError where the C++ of a mutant is none."""
    if not mutant.file.endswith(".py"):
        folders = [f"-I{(ROOT / mutant.file).parent}", f"-I{ROOT / 'csrc' / 'include'}"]
        subprocess.run([*_COMPILE, *folders], input=mutant.source(), text=True, check=True)


def unmutated(mutants: list[Mutant]) -> list[tuple[str, ...]]:
    """What must pass before any mutation: Triton's cases at once, the rest as the mutants ask for it."""
    cases = {name for mutant in mutants for name in mutant.tests if "cases.py" in name}
    others = {mutant.tests for mutant in mutants if "cases.py" not in mutant.tests[0]}
    return [*filter(None, [tuple(sorted(cases))]), *sorted(others)]


def main() -> int:
    """The command line. Exit status 1 when a mutant survived that is not said to be equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words of a mutant's file or of what it breaks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", type=float, default=300.0, help="processor seconds of tests per mutant")
    given = parser.parse_args()
    # Before anything imports triton.
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(ROOT / "tests" / "hf"))
    from mutation_run import Run

    chosen = [m for m in MUTANTS if given.only in f"{m.file} {m.breaks}"]
    for mutant in chosen:
        check_compiles(mutant)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAPT_KERNELS_CACHE"] = str(Path(folder, "cache"))
        run = Run(given.processes, Path(folder), given.budget, lambda mutant: list(mutant.tests))
        for tests in unmutated(chosen):
            run.check_unmutated(tests)
        survivors = run.survivors_of(chosen)
    wrong = [m for m in chosen if (m in survivors) != bool(m.equivalent)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed, {len(survivors) - len(wrong)} equivalent")
    for mutant in wrong:
        print(f"- `{mutant.file}:{mutant.line}` {mutant.difference()}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
