"""What every GPU kernel costs on sm_90, from its machine code: `python tests/aot/kernel_costs.py` rewrites the table
benchmarks/results/sass_sm90.json: floors in benchmarks/README.md, a budget in test_kernel_costs.py."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from sass import disassembled, hot_path, loads_before_use, resident_ctas
from stub_driver import Launch, stub_driver

from adapt_kernels.native.jit_cuda import NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks" / "results" / "sass_sm90.json"
VOCAB_SIZE = 151936
CREDIT_THREADS = {"scan_tiles": 256, "merge_rows": 256, "gradient_rows": 256, "loss_rows": 256, "rescale_rows": 256}


@dataclass(frozen=True)
class Hot:
    """A stretch that every logit goes through: `amount` of `by` a thread (see `hot_path`), for `logits` of them."""

    amount: int
    by: str
    logits: int
    loop: bool = False


def cost(launch: Launch, hot: tuple[Hot, ...], code=None, rows: int = 1) -> dict:
    """The table's entry of one kernel: `code` where the binary holds several, `rows` of the launch."""
    code = code or disassembled(launch.code)[launch.kernel]
    paths = [(stretch, hot_path(code, stretch.amount, stretch.by, stretch.loop)) for stretch in hot]
    issued, width = max((loads_before_use(path) for _, path in paths), default=(0, 0))
    found = {
        "instructions_per_logit": round(sum(len(path) / stretch.logits for stretch, path in paths), 2) if hot else None,
        "loads_before_use": issued,
        "load_bits": width,
        "float64": sum(i.is_float64 for _, path in paths for i in path),
        "divisions": sum(i.is_division for _, path in paths for i in path),
        "instructions": len(code),
        "registers": launch.registers,
        "shared": launch.shared,
        "threads": launch.threads,
        "ctas_per_sm": resident_ctas(launch.registers, launch.shared, launch.threads),
        "spilled": launch.spilled,
        "ctas": launch.grid[0] * launch.grid[1] * launch.grid[2] // rows,
    }
    return found if hot else {key: found[key] for key in list(found)[5:]}


# Rows, sampling arguments, and per kernel the stretch that reads the logits: one warp of a plain read has 32 a lane of
# few rows, 128 of many; a thread has 16 of an exact program's 2048.
SAMPLERS = {
    "T = 1, 1 row": (1, {}, {"group_statistics": (Hot(32, "MUFU.EX2", 32),)}),
    "T = 1": (64, {}, {"group_statistics": (Hot(128, "MUFU.EX2", 128),)}),
    "T = .7": (64, {"temperature": 0.7}, {"group_statistics": (Hot(256, "MUFU.EX2", 128),), "draw": ()}),
    "T = .7, fp32": (
        64,
        {"temperature": 0.7, "dtype": torch.float32},
        {"group_statistics": (Hot(256, "MUFU.EX2", 128),)},
    ),
    "T = 1, idle classes": (
        64,
        {"classes": 8},
        {"group_statistics": (Hot(64, "MUFU.EX2", 64),)},
    ),
    # Two gathers a logit.
    "T = 1, acting classes": (
        64,
        {"classes": 8},
        {"group_statistics": (Hot(4 * 2 * 64, "LDG.E", 64),)},
    ),
    "top_k 20": (1, {"temperature": 0.7, "top_k": 20}, {"draw": ()}),
    "top_p .95": (
        1,
        {"temperature": 0.7, "top_p": 0.95},
        {
            "bracket": (),
            "weigh_bracket": (Hot(32, "MUFU.EX2", 32),),
            # The list of candidates. Every thread answers for 593 logits of a flat row, a fifth of whose blocks of
            # eight hold any: at most 12 of a group's 16, four a turn; then four turns of 1024 blocks, each with
            # three turns for as many candidates in one block.
            "draw": (
                Hot(128, "STG.E", 593 // 3, loop=True),
                Hot(64, "LDG.U16", 593 // 4, loop=True),
                Hot(16, "STG.E", 593 // 12, loop=True),
            ),
        },
    ),
    "top_p .95, 64 rows": (
        64,
        {"temperature": 0.7, "top_p": 0.95},
        {"group_statistics": (Hot(256, "MUFU.EX2", 128),), "weigh_bracket": (Hot(128, "MUFU.EX2", 128),)},
    ),
    "T = 1, V = 151944": (64, {"vocab_size": 151944}, {"group_statistics": (Hot(128, "MUFU.EX2", 128),)}),
    # Two loads of 16 bytes for eight logits, as a row may begin between.
    "T = 1, V = 151937": (64, {"vocab_size": 151937}, {"group_statistics": (Hot(512, "LDG.128", 128),)}),
}


def of_mode_sample(driver) -> dict[str, dict]:
    """Bfloat16 logits where nothing else is said."""
    from test_mode_sample_compiles import launches

    found = {}
    for name, (rows, arguments, hot) in SAMPLERS.items():
        for launch in launches(driver, rows=rows, **arguments):
            if launch.kernel in hot:
                found[f"mode_sample {launch.kernel}, {name}"] = cost(launch, hot[launch.kernel], rows=rows)
    return found


def of_attention(driver) -> dict[str, dict]:
    """4 prompts of 2048 positions with 16 samples each; one row of 2048 with 8 KV heads."""
    from test_branch_compiles import attend, attend_one_row

    driver.launches.clear()
    attend()
    attend_one_row(2048)
    shared, _, own, merged, alone, _ = driver.launches
    named = {"attend, a shared prompt": shared, "attend, own positions": own, "merge": merged, "attend, 1 row": alone}
    return {f"segment_attention {name}": cost(launch, ()) for name, launch in named.items()}


def of_steps(driver) -> dict[str, dict]:
    """branch and steer, 64 rows."""
    from test_steer_compiles import half_steps, run_of

    from adapt_kernels.ops.branch import triton_kernel as branch

    driver.launches.clear()
    half_steps(run_of(64), 64)
    found = {f"steer {launch.kernel}": cost(launch, ()) for launch in driver.launches}
    driver.launches.clear()
    modes, prompts = torch.zeros(64, dtype=torch.int8), torch.zeros(64, dtype=torch.int64)
    branch.branch(modes, prompts, torch.ones(3, dtype=torch.int64), 4, torch.ones(64, dtype=torch.bool))
    return found | {f"branch {launch.kernel}": cost(launch, ()) for launch in driver.launches}


def of_kept_keys(driver) -> dict[str, dict]:
    """kv_scores, 8 heads of 1000 keys."""
    from test_kv_scores_compiles import compare_keys

    driver.launches.clear()
    compare_keys()
    return {f"kv_scores {launch.kernel}": cost(launch, ()) for launch in driver.launches}


# Source, kernel, its hot stretches in bfloat16: a lane has 32 columns of a tile, in packs of 8.
READ_TILE = Hot(64, "LDG.128", 32, loop=True)
WRITE_TILE = Hot(64, "STG.128", 32, loop=True)
CUDA = (
    ("token_logprobs", "scan_tiles", (READ_TILE,)),
    ("token_logprobs", "merge_rows", ()),
    ("token_logprobs", "gradient_rows", (WRITE_TILE,)),
    ("policy_loss", "loss_rows", (READ_TILE, WRITE_TILE)),
    ("policy_loss", "rescale_rows", (READ_TILE,)),
    ("policy_loss", "sum_losses", ()),
)


def of_cuda(nvcc: str) -> dict[str, dict]:
    """The credit kernels; shared memory that the launch adds is not in it."""
    found, compiled = {}, {}
    for source, kernel, hot in CUDA:
        if source not in compiled:
            compiled[source] = _compiled(nvcc, source)
        code, usage = compiled[source]
        name = next(name for name in code if kernel in name and ("bfloat16" in name or kernel == "sum_losses"))
        registers, spilled, shared = usage[name]
        launch = Launch(kernel, (1, 1, 1), CREDIT_THREADS.get(kernel, 256), registers, spilled, shared)
        entry = cost(launch, hot, code[name])
        del entry["ctas"]
        found[f"{source} {kernel}"] = entry
    return found


def _compiled(nvcc: str, source: str) -> tuple[dict, dict]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [nvcc, *NVCC_FLAGS, "-arch=sm_90", "-cubin", f"-I{ROOT}/csrc/include", "-o", cubin]
        subprocess.run([*command, ROOT / "csrc" / "cuda" / f"{source}.cu"], check=True, capture_output=True, text=True)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
        return disassembled(cubin.read_bytes()), {name: tuple(map(int, numbers)) for name, *numbers in found}


def compilers(nvcc: str | None) -> dict[str, str]:
    """Whose machine code it is; other versions give other code."""
    found = {"triton": triton.__version__}
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        found["nvcc"] = re.search(r"release \S+ V(\S+)", text)[1]
    return found


def of_triton() -> dict[str, dict]:
    """Every Triton kernel as its wrapper launches it."""
    driver = stub_driver("sm_90")
    before, triton.runtime.driver._active = triton.runtime.driver._active, driver
    try:
        return of_mode_sample(driver) | of_attention(driver) | of_steps(driver) | of_kept_keys(driver)
    finally:
        triton.runtime.driver._active = before


def main() -> None:
    from adapt_kernels.native.toolchain_cuda import find_nvcc

    nvcc = find_nvcc()
    table = {"compilers": compilers(nvcc), "kernels": of_triton() | of_cuda(nvcc)}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
