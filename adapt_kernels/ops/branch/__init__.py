"""branch: from the modes just drawn to the order of rows in the batch and their first KV slots."""

from typing import NamedTuple

import torch

from adapt_kernels.dispatch import choose

__all__ = ["Branches", "branch"]


class Branches(NamedTuple):
    """order [B] int64: row at each batch slot. slot [B] int64: batch slot of each row. kv_start [B + 1] int64: first
    early KV slot of each batch slot, then the total. rows_per_prompt [P] int32: living rows of each prompt."""

    order: torch.Tensor
    slot: torch.Tensor
    kv_start: torch.Tensor
    rows_per_prompt: torch.Tensor


@torch.no_grad()
def branch(modes, prompts, kv_tokens, num_prompts: int, alive=None, backend: str = "auto") -> Branches:
    """Order rows so that those with the longest KV allotment come first and finished ones last.

        key    = (not alive, -kv_tokens[mode], prompt, row)
        order  = argsort(key);  kv_start = exclusive cumsum of kv_tokens[mode][order], finished rows counting 0

    Rows that end early sit at the tail, so that dropping them is a narrower view; rows of one prompt sit together, so
    that one tile of queries reads the prompt's KV.

    Args:
        modes: [B] int8, mode index of each row, -1 = none; any device.
        prompts: [B] int64, prompt of each row, in [0, num_prompts); on the device of `modes`.
        kv_tokens: [M + 1] int64 >= 0, early KV slots per mode, the last entry for rows in no mode; same device.
        alive: [B] bool, or None = all.
        backend: "auto" (triton on CUDA, else reference), "reference" or "triton".

    Returns Branches, on the device of `modes`. Deterministic, integers only, no randomness, no host sync; one launch on
    triton. Vectors may have any stride. B = 0 works. Values inside tensors are not checked.

    Raises ValueError or TypeError naming the argument, what was given and what is allowed; RuntimeError if an explicit
    backend cannot run.
    """
    modes = _checked("modes", modes, torch.int8, None)
    prompts = _checked("prompts", prompts, torch.int64, len(modes))
    kv_tokens = _checked("kv_tokens", kv_tokens, torch.int64, None)
    if len(kv_tokens) == 0:
        raise ValueError("kv_tokens needs one entry per mode and one for rows in no mode; got an empty tensor")
    if alive is None:
        alive = torch.ones(len(modes), dtype=torch.bool, device=modes.device)
    alive = _checked("alive", alive, torch.bool, len(modes))
    if isinstance(num_prompts, bool) or not isinstance(num_prompts, int) or num_prompts < 0:
        raise ValueError(f"num_prompts must be an integer >= 0; got {num_prompts!r}")
    tensors = {"prompts": prompts, "kv_tokens": kv_tokens, "alive": alive}
    elsewhere = [name for name, tensor in tensors.items() if tensor.device != modes.device]
    if elsewhere:
        raise ValueError(
            f"{elsewhere[0]} must be on the device of modes, {modes.device}; got {tensors[elsewhere[0]].device}"
        )
    return choose("branch", backend, modes).branch(modes, prompts, kv_tokens, num_prompts, alive)


def _checked(name: str, tensor, dtype, length) -> torch.Tensor:
    if not torch.is_tensor(tensor) or tensor.dtype != dtype:
        given = tensor.dtype if torch.is_tensor(tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a tensor of {dtype}; got {given}")
    if tensor.ndim != 1 or (length is not None and len(tensor) != length):
        wanted = "one dimension" if length is None else f"shape ({length},), one entry per row"
        raise ValueError(f"{name} must have {wanted}; got {tuple(tensor.shape)}")
    return tensor
