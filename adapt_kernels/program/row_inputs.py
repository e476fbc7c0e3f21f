"""What rows bring to a call: their programs, and the numbers and sequences that these ask for."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from numbers import Integral, Real

import torch

from adapt_kernels.program.program import Program


def listed(program) -> list[Program]:
    """The programs of one row: none, one, or several. Raises TypeError for anything else."""
    own = [] if program is None else [program] if isinstance(program, Program) else program
    if not isinstance(own, (list, tuple)) or not all(isinstance(each, Program) for each in own):
        raise TypeError(f"a row's program must be a Program, a list of them or None; got {program!r}")
    return list(own)


def in_order(of_rows: Sequence[Sequence[Program]]) -> list[Program]:
    """The distinct programs of all rows, those of each row in its own order: earlier rules come first.

    Raises ValueError where two rows disagree.
    """
    before: dict[Program, dict[Program, None]] = {}
    for own in (list(dict.fromkeys(each)) for each in of_rows):
        for place, program in enumerate(own):
            before.setdefault(program, {}).update(dict.fromkeys(own[:place]))
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        raise ValueError(
            "rows list the same programs in different orders, and a program has one place in a call: list them in one"
            " order"
        ) from None


def checked_inputs(programs: Sequence[Program], inputs: Mapping, rows: int) -> dict:
    """The inputs as lists or tensors of one entry per row. Raises ValueError for missing, unknown or misshapen ones."""
    needed = dict.fromkeys(name for program in programs for name in program.inputs)
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise ValueError(
            f"the program reads the row input {missing[0]!r}: give one value per row,"
            f" program_inputs={{{missing[0]!r}: ...}}"
        )
    unknown = [name for name in inputs if name not in needed]
    if unknown:
        known = ", ".join(map(repr, needed)) or "none"
        raise ValueError(f"no rule reads the row input {unknown[0]!r}; the program's inputs are {known}")
    found = {}
    for name, values in inputs.items():
        values = values.tolist() if torch.is_tensor(values) else values
        if not isinstance(values, (list, tuple)) or len(values) != rows:
            shown = f"{len(values)} values" if isinstance(values, (list, tuple)) else repr(values)
            raise ValueError(f"the row input {name!r} must have one value per row, {rows}; got {shown}")
        found[name] = list(values)
    return found


def first_registers(compiled, of_rows: Sequence[Sequence[int]], inputs: Mapping) -> torch.Tensor:
    """`SteerState.registers` of rows before their prompt, on the CPU; of_rows: the numbers of each row's programs."""
    registers = torch.zeros(len(of_rows), len(compiled.registers) + len(compiled.surprise))
    signals = {name for program in compiled.programs for name in program.signals}
    for (name, _), column in compiled.registers.items():
        if name in inputs:
            # A probe of another row's program may fill the register of the same name.
            reads = [any(name in compiled.programs[owner].inputs for owner in own) for own in of_rows]
            registers[:, column] = torch.tensor(_register_values(name, inputs[name], reads), dtype=torch.float32)
        elif name in signals:
            registers[:, column] = float("nan")
    for index, column in compiled.surprise.items():
        registers[:, column] = 2 * compiled.mirostat(index)[0]
    return registers


def _register_values(name: str, values: Sequence, reads: Sequence[bool]) -> list[float]:
    """One number per row; 0 for rows that do not read it. Raises ValueError for what is none."""
    for row, (value, read) in enumerate(zip(values, reads, strict=True)):
        if read and (isinstance(value, bool) or not isinstance(value, Real) or value != value):
            raise ValueError(f"the row input {name!r} must be a number, not NaN; got {value!r} for row {row}")
    return [float(value) if read else 0.0 for value, read in zip(values, reads, strict=True)]


def bound_values(name: str, values: Sequence, at_least: int, label: str) -> list[int | None]:
    """One integer per row, None for a row that does without the rule. Raises ValueError for what is none."""
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < at_least):
            raise ValueError(
                f"{label}: the row input {name!r} must be an integer >= {at_least} or None; got {list(values)}"
            )
    return [None if value is None else int(value) for value in values]
