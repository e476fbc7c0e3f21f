"""token_logprobs over a vocabulary split across processes: four numbers per row are exchanged, never logits."""

from types import ModuleType

import torch
import torch.distributed as dist

from adapt_kernels.ops.token_rows import TokenRows


def vocab_offset(logits: torch.Tensor, process_group) -> tuple[int, int]:
    """(first id of this process's columns, size of the whole vocabulary); shards follow the order of the ranks."""
    sizes = torch.zeros(dist.get_world_size(process_group), dtype=torch.int64, device=logits.device)
    rank = dist.get_rank(process_group)
    sizes[rank] = logits.shape[-1]
    dist.all_reduce(sizes, group=process_group)
    listed = sizes.tolist()
    return sum(listed[:rank]), sum(listed)


def sharded_logprobs(rows: TokenRows, offset: int, process_group, backend: ModuleType):
    """(log-probs, entropies), [N] float64; `rows.ids` are ids of the whole vocabulary, `rows.logits` this shard."""
    shard = rows._replace(logits=rows.logits.detach(), ids=rows.ids - offset)
    return _ShardedLogprobs.apply(rows.logits, shard, process_group, backend)


class _ShardedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, shard: TokenRows, process_group, backend):
        vocab_size = logits.shape[-1]
        inside = (shard.ids >= 0) & (shard.ids < vocab_size)
        if shard.mask is not None:
            inside &= shard.mask
        # The statistics do not depend on the token; some valid one is asked for.
        local = backend.row_statistics(shard._replace(ids=torch.zeros_like(shard.ids)))
        index = torch.arange(shard.count, device=logits.device)
        batch, inner = index // max(logits.shape[1], 1), index % max(logits.shape[1], 1)
        picked = shard.logits[batch, inner, shard.ids.clamp(0, vocab_size - 1)].double()
        picked = torch.where(inside, picked, 0.0)
        statistics, token = _merge(torch.cat([local, picked[:, None]], 1), shard, process_group)
        maximum, mass, moment = statistics.unbind(1)
        temperature = shard.temperature if shard.temperature_rows is None else shard.temperature_rows
        logprobs = (token - maximum) / temperature - mass.log()
        logprobs = torch.where(mass > 0, logprobs, torch.nan)
        entropy = mass.log() - moment / mass
        if shard.mask is not None:
            logprobs, entropy = logprobs.where(shard.mask, 0.0), entropy.where(shard.mask, 0.0)
        ctx.shard, ctx.backend, ctx.statistics = shard._replace(logits=logits.new_empty(0)), backend, statistics
        ctx.save_for_backward(logits)
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, logprobs_grad, entropy_grad):
        (logits,) = ctx.saved_tensors
        rows = ctx.shard._replace(logits=logits)
        return ctx.backend.logit_gradient(rows, ctx.statistics, logprobs_grad, entropy_grad), None, None, None


def _merge(local: torch.Tensor, shard: TokenRows, process_group) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics [N, 3] of whole rows, and the token's logit, from every process's [N, 4], in the order of ranks."""
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(gathered, local.contiguous(), group=process_group)
    maximum, mass, moment, token = torch.stack(gathered).unbind(2)
    whole = maximum.amax(0)
    temperature = shard.temperature if shard.temperature_rows is None else shard.temperature_rows
    shift = (maximum - whole) / temperature
    empty = mass == 0  # a shard of nothing but -inf, whose shift may be -inf - -inf
    shift = torch.where(empty, 0.0, shift)
    share = shift.exp()
    statistics = torch.stack([whole, (mass * share).sum(0), ((moment + mass * shift) * share).sum(0)], 1)
    return statistics, token.sum(0)
