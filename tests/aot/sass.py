"""Reads NVIDIA machine code: what the hot path of a kernel costs. Nothing runs; branches are followed on paper.

The hot path is the cheapest one through a region (a whole program, or one turn of a loop) that moves the bytes a thread
must move: a tile's aligned body, past slow paths for edges, NaN and divisions.
"""

import heapq
import re
import subprocess
import tempfile
from dataclasses import dataclass, field

import triton

_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T0-9]+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_FUNCTION = re.compile(r"^\.text\.(\S+):")
_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool  # carries a predicate
    opcode: str
    operands: str
    target: int | None = None  # of a branch

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def bytes(self) -> int:
        """Moved per thread by a load or a store."""
        return next((_WIDTHS[part] for part in self.opcode.split(".")[1:] if part in _WIDTHS), 4)

    def matches(self, kind: str, width: str) -> bool:
        return self.base == kind and width in self.opcode.split(".")

    @property
    def is_float64(self) -> bool:
        return (
            bool(re.match(r"D(ADD|MUL|FMA|SETP|MNMX|SET)$", self.base)) or "64H" in self.opcode or ".F64" in self.opcode
        )

    @property
    def is_division(self) -> bool:
        return ".RCP" in self.opcode or (self.base == "CALL" and "div" in self.operands)


@dataclass
class Block:
    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)  # addresses of blocks


def disassembled(cubin: bytes) -> dict[str, list[Instruction]]:
    """The instructions of every kernel of a cubin, called routines left out."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.nvdisasm.path
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    kernels, labels, name, waiting = {}, {}, None, []
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            name, waiting = found[1], []
            kernels[name], labels[name] = [], {}
        elif found := _LABEL.match(line):
            waiting.append(found[1])
        elif name and (found := _LINE.search(line)):
            labels[name] |= dict.fromkeys(waiting, int(found[1], 16))
            waiting = []
            kernels[name].append(found)
    return {name: [_instruction(found, labels[name]) for found in lines] for name, lines in kernels.items()}


def _instruction(found, labels) -> Instruction:
    address, guard, opcode, operands = found.groups()
    target = _TARGET.search(operands) if opcode.startswith("BRA") else None
    guarded = guard is not None or ".DIV" in opcode or re.match(r"!?U?P\d", operands) is not None
    return Instruction(int(address, 16), guarded, opcode, operands, labels[target[1]] if target else None)


def blocks_of(code: list[Instruction]) -> dict[int, Block]:
    """Basic blocks by address, with their edges."""
    starts = {code[0].address} | {i.target for i in code if i.target is not None}
    ends = {"BRA", "EXIT", "RET"}
    starts |= {after.address for i, after in zip(code, code[1:], strict=False) if i.base in ends}
    blocks, current = {}, None
    for i in code:
        if i.address in starts:
            current = blocks[i.address] = Block([])
        current.instructions.append(i)
    order = [*sorted(blocks), None]
    for at, after in zip(order, order[1:], strict=False):
        last = blocks[at].instructions[-1]
        if last.target is not None:
            blocks[at].successors.append(last.target)
        if after is not None and not (last.base in ends and not last.guarded):
            blocks[at].successors.append(after)
    return blocks


def hot_path(code: list[Instruction], amount: int, by: str = "LDG.128", loop: bool = False) -> list[Instruction]:
    """The cheapest path on which a thread moves `amount` bytes by accesses like `by` ("LDG.128", "STG.64"), or computes
    as many exponentials ("MUFU.EX2"): through the program, or once around a loop. ValueError where there is none."""
    blocks = blocks_of(code)
    first = code[0].address
    starts = sorted({to for at, block in blocks.items() for to in block.successors if to <= at}) if loop else [first]
    found = [path for start in starts if (path := _cheapest(blocks, start, amount, by, loop)) is not None]
    if not found:
        raise ValueError(f"no path of {'a loop' if loop else 'the program'} has {amount} of {by}")
    return min(found, key=len)


def _cheapest(blocks, start, amount, by, loop):
    """Dijkstra over (block, amount still to go)."""
    kind, width = by.split(".")
    gain = {
        at: sum(i.bytes if kind in ("LDG", "STG") else 1 for i in block.instructions if i.matches(kind, width))
        for at, block in blocks.items()
    }
    queue, done = [(0, start, amount, ())], set()
    while queue:
        size, at, left, path = heapq.heappop(queue)
        if loop and at == start and path and not left:
            return [i for place in path for i in blocks[place].instructions]
        if (at, left) in done:
            continue
        if path or not loop:
            done.add((at, left))
        block = blocks[at]
        size, left, path = size + len(block.instructions), max(0, left - gain[at]), (*path, at)
        if not loop and block.instructions[-1].base == "EXIT" and not left:
            return [i for place in path for i in blocks[place].instructions]
        for after in block.successors:
            heapq.heappush(queue, (size, after, left, path))
    return None


def loads_before_use(path: list[Instruction]) -> tuple[int, int]:
    """(global loads issued before the first instruction that needs one of them, the widest in bits)."""
    pending, issued, widest = set(), 0, 0
    for i in path:
        registers = [int(number) for number in _REGISTER.findall(i.operands)]
        if i.base == "LDG":
            first = registers[0]
            if i.bytes >= widest // 8:
                # What narrower loads fetch before (a row's constants) is none of the tile.
                if i.bytes > widest // 8:
                    pending, issued, widest = set(), 0, 8 * i.bytes
                pending |= set(range(first, first + max(1, i.bytes // 4)))
                issued += 1
            continue
        if pending & set(registers) and _reads(i, pending):
            if widest >= 64:
                break
            pending, issued = set(), 0
    return issued, widest


def _reads(i: Instruction, pending) -> bool:
    sources = i.operands if i.base in ("STG", "STS", "ST", "ISETP", "FSETP", "DSETP") else i.operands.partition(",")[2]
    return bool(pending & {int(number) for number in _REGISTER.findall(sources)})


def resident_ctas(registers: int, shared: int, threads: int) -> int:
    """CTAs that one sm_90 multiprocessor holds: 64 Ki registers given out by 256 a warp, 227 KiB shared memory."""
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * (threads // 32))
    return min(by_registers, 233472 // (shared + 1024), 2048 // threads, 32)
