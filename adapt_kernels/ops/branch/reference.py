"""branch in plain torch."""

import torch

from adapt_kernels.ops.branch import Branches


def branch(modes, prompts, kv_tokens, num_prompts, alive) -> Branches:
    """See `adapt_kernels.ops.branch.branch`."""
    tokens = torch.where(alive, kv_tokens[modes.long()], 0)
    order = torch.arange(len(modes), device=modes.device)
    # Stable sorts from the least significant key to the most significant one.
    for key in (prompts, -tokens, (~alive).to(torch.int8)):
        order = order[key[order].argsort(stable=True)]
    start = torch.nn.functional.pad(tokens[order].cumsum(0), (1, 0))
    counts = torch.zeros(num_prompts, dtype=torch.int64, device=modes.device)
    counts.index_add_(0, prompts, alive.long())
    return Branches(order, order.argsort(), start, counts.int())
