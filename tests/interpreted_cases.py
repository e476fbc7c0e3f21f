"""Runs Triton cases under the interpreter, in a process of its own.

The variable must be set before the first import of triton, and makes that process unable to compile.
"""

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(cases: Path | str, marks: str) -> None:
    """cases: a file, or one of its classes as pytest names it; marks: of pytest's -m. Fails with the run's output."""
    command = [sys.executable, "-m", "pytest", str(cases), "-q", "-m", marks, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
