"""The training curve as a CSV file that a resumed run continues."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


class Curve:
    """`out`/curve.csv: one line per step. What lies beyond the `done` steps, of a part that was lost, is dropped."""

    def __init__(self, out: Path, columns: Sequence[str], done: int) -> None:
        self._path, self._columns = out / "curve.csv", ["step", *columns]
        kept = [row for row in self.rows(out) if int(row["step"]) <= done]
        out.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append one step."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step, **values})

    @staticmethod
    def rows(out: Path) -> list[dict[str, str]]:
        """The lines of the curve in `out`, as text; none if there is no curve."""
        path = out / "curve.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
