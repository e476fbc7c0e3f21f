"""token_logprobs in plain torch, float64 throughout and differentiable: the truth every backend is tested against."""

import torch

from adapt_kernels.ops.token_rows import TokenRows


def token_logprobs(rows: TokenRows, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `adapt_kernels.token_logprobs`; [N] each."""
    logprobs, entropies = exact_logprobs(rows, entropy)
    logprobs = logprobs.to(rows.result_dtype)
    return logprobs, None if entropies is None else entropies.to(rows.result_dtype)


def exact_logprobs(rows: TokenRows, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob and entropy of every row in float64, 0 where masked. Masked rows are not read, so nothing leaks."""
    x, active, temperature = _active(rows)
    log_p = torch.log_softmax(x / temperature, dim=-1)
    ids, vocab_size = rows.ids[active], x.shape[1]
    inside = (ids >= 0) & (ids < vocab_size)
    picked = log_p.gather(1, ids.clamp(0, vocab_size - 1)[:, None]).squeeze(1)
    # log_softmax calls a token of log-prob -inf NaN where the whole row is, and only there.
    picked = torch.where(inside, picked, torch.nan)
    zeros = torch.zeros(rows.count, dtype=torch.float64, device=x.device)
    logprobs = zeros.index_put((active,), picked)
    if not entropy:
        return logprobs, None
    finite = log_p.masked_fill(log_p == float("-inf"), 0.0)
    return logprobs, zeros.index_put((active,), -(log_p.exp() * finite).sum(-1))


def row_statistics(rows: TokenRows) -> torch.Tensor:
    """[N, 3] float64: maximum m, mass = sum e^y and moment = sum e^y y with y = (logits - m) / temperature."""
    x, active, temperature = _active(rows)
    maximum = x.amax(1, keepdim=True)
    y = (x - torch.where(maximum == float("-inf"), 0.0, maximum)) / temperature
    weights = y.exp()
    moment = (weights * y.masked_fill(y == float("-inf"), 0.0)).sum(1)
    found = torch.stack([maximum.squeeze(1), weights.sum(1), moment], 1)
    return found.new_zeros(rows.count, 3).index_put((active,), found)


def logit_gradient(rows: TokenRows, statistics, logprob_slope, entropy_slope) -> torch.Tensor:
    """Gradient [B, T, V] of what depends on each row through its log-prob and entropy; an id outside has no column."""
    x, active, temperature = _active(rows)
    maximum, mass, moment = statistics[active].T.unsqueeze(2)
    y = (x - maximum) / temperature
    p = y.exp() / mass
    slope, bend = logprob_slope[active, None], entropy_slope[active, None]
    columns = torch.arange(x.shape[1], device=x.device)
    target = (columns == rows.ids[active, None]).double()
    found = (slope * (target - p) - bend * p * (y.masked_fill(p == 0, 0.0) - moment / mass)) / temperature
    gradient = found.new_zeros(rows.count, x.shape[1]).index_put((active,), found)
    return gradient.to(rows.logits.dtype).view(rows.logits.shape)


def _active(rows: TokenRows):
    """Rows that count in float64, which they are, and their temperatures [n, 1]."""
    count, vocab_size = rows.count, rows.logits.shape[-1]
    active = torch.arange(count, device=rows.logits.device) if rows.mask is None else rows.mask.nonzero().squeeze(1)
    x = rows.logits.reshape(count, vocab_size)[active].double()
    if rows.temperature_rows is None:
        return x, active, torch.full_like(active, rows.temperature, dtype=torch.float64)[:, None]
    return x, active, rows.temperature_rows[active, None]
