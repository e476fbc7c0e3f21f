"""One change that a sampler's tests must notice."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """`original`, which stands once in `file`, becomes `mutated`."""

    file: str  # below the root
    original: str
    mutated: str
    breaks: str  # what is wrong then
    tests: tuple[str, ...]  # arguments of pytest that should notice
    equivalent: str = ""  # why none can, where that is so

    def text(self) -> str:
        """The file as it is."""
        return (ROOT / self.file).read_text("utf-8")

    def source(self) -> str:
        """The whole mutated file."""
        return self.text().replace(self.original, self.mutated, 1)

    @property
    def line(self) -> int:
        """Where, counted from 1."""
        return self.text()[: self.text().index(self.original)].count("\n") + 1

    def difference(self) -> str:
        """The change, and what it breaks."""
        changed = [" ".join(text.split()) for text in (self.original, self.mutated)]
        return f"{changed[0]}  ->  {changed[1]}  ({self.breaks})"

    def fault(self) -> str | None:
        """Why the row is of no use: its snippet is not there once, changes nothing, or leaves no Python."""
        if (count := self.text().count(self.original)) != 1:
            return f"{self.file} has it {count} times: {self.original}"
        if self.mutated == self.original:
            return f"{self.file}: nothing changes: {self.original}"
        if self.file.endswith(".py"):
            ast.parse(self.source())
        return None
