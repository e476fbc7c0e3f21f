"""token_logprobs in plain torch, float64 throughout and differentiable: the truth every backend is tested against."""

import torch

from adapt_kernels.ops.token_rows import TokenRows


def token_logprobs(rows: TokenRows, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `adapt_kernels.token_logprobs`; [N] each."""
    logprobs, entropies = exact_logprobs(rows, entropy)
    logprobs = logprobs.to(rows.result_dtype)
    return logprobs, entropies.to(rows.result_dtype) if entropy else None


def exact_logprobs(rows: TokenRows, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob and entropy of every row in float64, 0 where masked. Masked rows are not read, so nothing leaks."""
    everything = torch.arange(rows.count, device=rows.logits.device)
    active = everything if rows.mask is None else rows.mask.nonzero().squeeze(1)
    vocab_size = rows.logits.shape[-1]
    y = rows.logits.reshape(rows.count, vocab_size)[active].double()
    y = y / (rows.temperature if rows.temperature_rows is None else rows.temperature_rows[active, None])
    log_p = torch.log_softmax(y, dim=-1)
    ids = rows.ids[active]
    inside = (ids >= 0) & (ids < vocab_size)
    picked = log_p.gather(1, ids.clamp(0, vocab_size - 1)[:, None]).squeeze(1)
    # log_softmax calls a token of log-prob -inf NaN where the whole row is, and only there.
    picked = torch.where(inside, picked, torch.nan)
    zeros = torch.zeros(rows.count, dtype=torch.float64, device=y.device)
    logprobs = zeros.index_put((active,), picked)
    if not entropy:
        return logprobs, None
    finite = log_p.masked_fill(log_p == float("-inf"), 0.0)
    return logprobs, zeros.index_put((active,), -(log_p.exp() * finite).sum(-1))
