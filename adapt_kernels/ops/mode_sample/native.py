"""mode_sample on CPU in C++ (`csrc/cpu/`): outputs are allocated here, everything else goes by value or pointer."""

from functools import lru_cache

import torch

from adapt_kernels.native import jit
from adapt_kernels.native.rows import address, check_status, logit_rows
from adapt_kernels.ops.mode_sample.arguments import Rows, row_values
from adapt_kernels.ops.mode_sample.result import ModeSample

DEVICES = ("cpu",)


def mode_sample(rows: Rows) -> ModeSample:
    """See `adapt_kernels.mode_sample`. Raises NativeBuildError if the extension cannot be built or loaded."""
    kernel = jit.load().mode_sample_cpu
    logits, num_modes = rows.logits, len(rows.mode_ids)
    out = _empty_outputs(rows.count, num_modes)
    bias = rows.bias if rows.bias is None else rows.bias.contiguous()
    row_arguments, held = _row_arguments(rows)
    status = kernel(
        *logit_rows(logits),
        _mode_id_tensor(rows.mode_ids).data_ptr(),
        num_modes,
        rows.only_modes,
        address(bias),
        *row_arguments,
        *_class_edits(rows, held),
        *[tensor.data_ptr() for tensor in out],
        torch.get_num_threads(),
    )
    del held  # alive until here: the kernel read them by address
    check_status("mode_sample", status)
    return out


def _empty_outputs(count: int, num_modes: int) -> ModeSample:
    flags = torch.empty(count, dtype=torch.int32)
    logprobs = torch.empty(count, dtype=torch.float32)
    return ModeSample(
        tokens=torch.empty(count, dtype=torch.int64),
        modes=torch.empty(count, dtype=torch.int8),
        logprobs=logprobs,
        raw_logprobs=torch.empty_like(logprobs),
        tempered_logprobs=torch.empty_like(logprobs),
        mode_probs=torch.empty(count, num_modes, dtype=torch.float32),
        kept=torch.empty_like(flags),
        flags=flags,
    )


def _row_arguments(rows: Rows) -> tuple[list, list[torch.Tensor]]:
    """Value and address of each row argument, in the order of the C structure, and the tensors behind the addresses."""
    pairs: list = []
    held: list[torch.Tensor] = []
    for value in row_values(rows):
        if isinstance(value, torch.Tensor):
            value = value.contiguous()
            held.append(value)
            pairs += (0, value.data_ptr())
        else:
            pairs += (value, 0)
    return pairs, held


def _class_edits(rows: Rows, held: list[torch.Tensor]) -> list[int]:
    """The numbers of `ClassEdits`; `held` grows by the tensors behind its addresses."""
    if rows.token_classes is None or rows.class_scale is None or rows.class_bias is None:
        return [0] * 5
    tensors = [each.contiguous() for each in (rows.token_classes, rows.class_scale, rows.class_bias)]
    held += tensors
    classes, scale, bias = (each.data_ptr() for each in tensors)
    return [classes, len(rows.token_classes), rows.class_bias.shape[1], scale, bias]


@lru_cache(maxsize=64)
def _mode_id_tensor(mode_ids: tuple[int | None, ...]) -> torch.Tensor:
    return torch.tensor([-1 if token_id is None else token_id for token_id in mode_ids], dtype=torch.int64)
