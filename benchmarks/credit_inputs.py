"""Inputs and peers of the credit benchmarks: TRL's functions, the installed ones or else the same arithmetic."""

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from credit_peers import NotHere

import adapt_kernels as ak

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@lru_cache(maxsize=1)
def make_logits(rows, vocab_size, dtype):
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])


def make_rows(logits, density=1.0, zero_share=0.0):
    """(ids, old log-probs near the present ones, advantages, mask or None) for some share of live and zero rows."""
    generator = torch.Generator().manual_seed(1)
    rows, vocab_size = logits.shape
    ids = torch.randint(0, vocab_size, (rows,), generator=generator)
    old = ak.token_logprobs(logits, ids)[0] + 0.05 * torch.randn(rows, generator=generator)
    advantages = torch.randn(rows, generator=generator)
    advantages[torch.randperm(rows, generator=generator)[: int(zero_share * rows)]] = 0
    if density == 1:
        return ids, old, advantages, None
    mask = torch.zeros(rows, dtype=torch.bool)
    mask[torch.randperm(rows, generator=generator)[: int(density * rows)]] = True
    return ids, old, advantages, mask


def skip_too_large(rows, vocab_size, dtype, light):
    """Gigabytes of logits are for what copies none (`light`), and in bfloat16 only."""
    if rows * vocab_size > 1 << 28 and (dtype == "fp32" or not light):
        pytest.skip("it would take more than 5 GB of logits and copies of them")
    if rows * vocab_size > 1 << 27 and dtype == "fp32":
        pytest.skip("as many rows in bfloat16 are measured")


def call_or_skip(peer, *arguments):
    """A call of credit_peers, or a skip with its reason."""
    try:
        return peer(*arguments)
    except NotHere as reason:
        pytest.skip(str(reason))


def one_read(logits):
    """The floor: a sum over the same bytes (a maximum of them as integers for 16-bit logits)."""
    return logits.sum if logits.dtype == torch.float32 else logits.view(torch.int16).max


def trl_functions():
    """(selective_log_softmax, entropy_from_logits) of the installed TRL, else as TRL 1.16 computes them on a CPU."""
    try:
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax
    except ImportError:
        return _selective_log_softmax, _entropy_from_logits
    return selective_log_softmax, entropy_from_logits


def batched(*tensors):
    """The same rows as 8 sequences: how TRL holds them, and how its loops over the first dimension are meant."""
    return [tensor.unflatten(0, (8, -1)) for tensor in tensors]


def ppo(logprobs, old, advantages):
    """TRL's clipped loss, averaged over the rows."""
    ratio = (logprobs - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages).mean()


def compiled(function, logits):
    """`function` by torch.compile; for one shape, as each takes half a minute."""
    if logits.shape != (512, 151936):
        pytest.skip("compiled for 512 rows of the large vocabulary only")
    torch.compiler.reset()
    return torch.compile(function)


def plain_score(logits, ids):
    """(log-probs, entropies) as one would write them for torch.compile to fuse."""
    logprobs = F.log_softmax(logits.float(), dim=-1)
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)


def _selective_log_softmax(logits, index):
    index = index.unsqueeze(-1)
    if logits.dtype == torch.float32:
        selected = logits.gather(-1, index).squeeze(-1)
        return selected - torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
    rows = zip(logits, index, strict=True)
    return torch.stack([F.log_softmax(row, dim=-1).gather(-1, i) for row, i in rows]).squeeze(-1)


def _entropy_from_logits(logits, chunk_size=128):
    parts = []
    for chunk in logits.split(chunk_size):
        logprobs = F.log_softmax(chunk, dim=-1)
        parts.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(parts)
