"""branch on Triton: one launch, ranks by counting instead of sorting.

A row's slot is the number of rows whose key is smaller, and its first KV slot is the sum of their allotments: both are
sums over all rows, so programs share nothing and the result does not depend on their order.
"""

from contextlib import nullcontext

import torch

from adapt_kernels.ops.branch import Branches
from adapt_kernels.triton_driver import OPTIONS

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

_ROWS, _OTHERS = 16, 64


def branch(modes, prompts, kv_tokens, num_prompts, alive) -> Branches:
    """See `adapt_kernels.ops.branch.branch`."""
    rows, device = len(modes), modes.device
    order, slot = torch.empty(2, rows, dtype=torch.int64, device=device)
    start = torch.empty(rows + 1, dtype=torch.int64, device=device)
    counts = torch.empty(num_prompts, dtype=torch.int32, device=device)
    row_blocks = triton.cdiv(rows + 1, _ROWS)
    grid = (row_blocks + triton.cdiv(num_prompts, _ROWS),)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        place_rows[grid](
            *(modes, modes.stride(0), prompts, prompts.stride(0), alive, alive.stride(0)),
            *(kv_tokens, kv_tokens.stride(0), len(kv_tokens), rows, num_prompts, row_blocks),
            *(order, slot, start, counts),
            ROWS=_ROWS,
            OTHERS=_OTHERS,
            **OPTIONS,
        )
    return Branches(order, slot, start, counts)


if triton is not None:

    @triton.jit
    def _load_rows(
        row, modes_ptr, modes_stride, prompts_ptr, prompts_stride, alive_ptr, alive_stride, tokens_ptr, tokens_stride,
        num_tokens, rows,
    ):  # fmt: skip
        """(exists, alive, prompt, tokens) of the rows; a row in no mode reads the last allotment."""
        exists = row < rows
        mode = tl.load(modes_ptr + row * modes_stride, mask=exists, other=0).to(tl.int64)
        mode = tl.where(mode < 0, num_tokens - 1, mode)
        alive = tl.load(alive_ptr + row * alive_stride, mask=exists, other=0).to(tl.int1)
        prompt = tl.load(prompts_ptr + row * prompts_stride, mask=exists, other=0)
        tokens = tl.load(tokens_ptr + mode * tokens_stride, mask=exists & alive, other=0)
        return exists, alive & exists, prompt, tokens

    @triton.jit
    def place_rows(
        modes_ptr, modes_stride, prompts_ptr, prompts_stride, alive_ptr, alive_stride,
        tokens_ptr, tokens_stride, num_tokens, rows, num_prompts, row_blocks,
        order_ptr, slot_ptr, start_ptr, counts_ptr, ROWS: tl.constexpr, OTHERS: tl.constexpr,
    ):  # fmt: skip
        """Programs below row_blocks place ROWS rows each (row `rows` takes the total), the others count prompts."""
        program = tl.program_id(0)
        if program < row_blocks:
            row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
            exists, alive, prompt, tokens = _load_rows(
                row, modes_ptr, modes_stride, prompts_ptr, prompts_stride, alive_ptr, alive_stride, tokens_ptr,
                tokens_stride, num_tokens, rows,
            )  # fmt: skip
            rank = tl.zeros([ROWS], dtype=tl.int64)
            start = tl.zeros([ROWS], dtype=tl.int64)
            for first in range(0, rows, OTHERS):
                other = first + tl.arange(0, OTHERS).to(tl.int64)
                other_exists, other_alive, other_prompt, other_tokens = _load_rows(
                    other, modes_ptr, modes_stride, prompts_ptr, prompts_stride, alive_ptr, alive_stride, tokens_ptr,
                    tokens_stride, num_tokens, rows,
                )  # fmt: skip
                # [ROWS, OTHERS]: whether the other row comes first.
                lower_row = other[None, :] < row[:, None]
                same_prompt = other_prompt[None, :] == prompt[:, None]
                by_prompt = (other_prompt[None, :] < prompt[:, None]) | (same_prompt & lower_row)
                same_tokens = other_tokens[None, :] == tokens[:, None]
                by_tokens = (other_tokens[None, :] > tokens[:, None]) | (same_tokens & by_prompt)
                same_alive = other_alive[None, :] == alive[:, None]
                before = (other_alive[None, :] & ~alive[:, None]) | (same_alive & by_tokens)
                before = (before | (row[:, None] == rows)) & other_exists[None, :]
                rank += tl.sum(before.to(tl.int64), 1)
                start += tl.sum(tl.where(before, other_tokens[None, :], 0), 1)
            tl.store(order_ptr + rank, row, mask=exists)
            tl.store(slot_ptr + row, rank, mask=exists)
            tl.store(start_ptr + rank, start, mask=row <= rows)
        else:
            wanted = (program - row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
            count = tl.zeros([ROWS], dtype=tl.int32)
            for first in range(0, rows, OTHERS):
                other = first + tl.arange(0, OTHERS).to(tl.int64)
                _, other_alive, other_prompt, _ = _load_rows(
                    other, modes_ptr, modes_stride, prompts_ptr, prompts_stride, alive_ptr, alive_stride, tokens_ptr,
                    tokens_stride, num_tokens, rows,
                )  # fmt: skip
                belongs = other_alive[None, :] & (other_prompt[None, :] == wanted[:, None])
                count += tl.sum(belongs.to(tl.int32), 1)
            tl.store(counts_ptr + wanted, count, mask=wanted < num_prompts)
