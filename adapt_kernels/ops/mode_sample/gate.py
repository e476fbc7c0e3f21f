"""The mode gate in float64: bias, restriction to the modes, temperature, exact mode probability."""

import torch

_NEG_INF = float("-inf")


def gated_logits(z, mode_ids, at_mode, bias, temperature, only_modes=True, fast_prob=None) -> torch.Tensor:
    """Tempered logits y [N, V] float64, row maximum 0: softmax(y) is the distribution before filters.

    z [N, V] float64 without NaN; at_mode [N] bool; bias [N, M]; temperature [N] > 0; fast_prob [N], NaN = none.
    A row with +inf becomes uniform over its +inf tokens, a row of -inf stays -inf.
    """
    y = biased_logits(z, mode_ids, at_mode, bias, only_modes)
    y = settle_infinities(y)
    peak = y.amax(1, keepdim=True)
    y = torch.where(y == _NEG_INF, y, (y - peak) / temperature[:, None])
    if mode_ids and fast_prob is not None:
        fast = mode_members(mode_ids, z.shape[1], z.device)[0]
        y = _with_exact_probability(y, fast, at_mode, fast_prob)
    return y


def biased_logits(z, mode_ids, at_mode, bias, only_modes=True) -> torch.Tensor:
    """z [N, V] without NaN, with bias [N, M] on the mode ids of `at_mode` rows and, if `only_modes`, -inf elsewhere."""
    if not mode_ids:
        return z
    members = mode_members(mode_ids, z.shape[1], z.device)
    for index, member in enumerate(members):
        shift = torch.where(at_mode, bias[:, index], 0.0)[:, None].to(z.dtype)
        # -inf wins over +inf, as a logit and as a bias: their sum would be NaN.
        shifted = torch.where((z == _NEG_INF) | (shift == _NEG_INF), _NEG_INF, z + shift)
        z = torch.where(member, shifted, z)
    if only_modes:
        z = torch.where(at_mode[:, None] & ~torch.stack(members).any(0), _NEG_INF, z)
    return z


def mode_probs(z, mode_ids) -> torch.Tensor:
    """The model's own P(mode) [N, M] float64 at T = 1, renormalised over the modes; 0 where all modes are -inf."""
    return chances(mode_logits(z, mode_ids)) if mode_ids else z.new_zeros(z.shape[0], 0)


def mode_logits(z, mode_ids, temperature: float = 1.0) -> torch.Tensor:
    """[N, M] of z [N, V] without NaN, such that `chances` of them are P(mode): a mode of any other token weighs as much
    as its tokens together do at this temperature."""
    listed = torch.tensor([i for i in mode_ids if i is not None], dtype=torch.int64, device=z.device)
    if None not in mode_ids:
        return settle_infinities(z[:, listed])
    z = settle_infinities(z)
    others = z.index_fill(1, listed, _NEG_INF)
    other = temperature * log_sum_exp(others / temperature)[:, 0] if temperature else others.amax(1)
    return torch.stack([other if i is None else z[:, i] for i in mode_ids], 1)


def chances(logits, bias=0.0, temperature: float = 1.0) -> torch.Tensor:
    """P(mode | bias) = softmax((logits + bias) / temperature) over the last dimension; at temperature 0 the first
    largest has all of it; 0 where all are -inf."""
    shifted = logits + bias
    if temperature == 0:
        return torch.nn.functional.one_hot(shifted.argmax(-1), shifted.shape[-1]).to(shifted.dtype)
    return torch.nan_to_num(torch.softmax(shifted / temperature, -1), nan=0.0)


def mode_members(mode_ids, vocab_size: int, device) -> list[torch.Tensor]:
    """Per mode a bool [V] of its tokens; None is every token no other mode has."""
    token = torch.arange(vocab_size, device=device)
    listed = [i for i in mode_ids if i is not None]
    others = ~torch.isin(token, torch.tensor(listed, device=device, dtype=torch.int64))
    return [others if i is None else token == i for i in mode_ids]


def log_sum_exp(y) -> torch.Tensor:
    """log sum exp over the last dimension, kept as 1; additions in one fixed order, so a row's bits never depend on
    the batch or the number of threads."""
    peak = y.amax(-1, keepdim=True)
    safe = torch.where(peak == _NEG_INF, 0.0, peak)
    weights = (y - safe).exp()
    size = 1 << (weights.shape[-1] - 1).bit_length()
    weights = torch.nn.functional.pad(weights, (0, size - weights.shape[-1]))
    return lane_sum(weights).log().unsqueeze(-1) + safe


def lane_sum(weights) -> torch.Tensor:
    """Sum over a last dimension whose length is a power of two, by halving."""
    while weights.shape[-1] > 1:
        half = weights.shape[-1] // 2
        weights = weights[..., :half] + weights[..., half:]
    return weights[..., 0]


def selected_modes(tokens, mode_ids, vocab_size: int) -> torch.Tensor:
    """The mode each token [N] opens, int8 [N], -1 = none."""
    selected = torch.full_like(tokens, -1, dtype=torch.int8)
    for index, member in enumerate(mode_members(mode_ids, vocab_size, tokens.device)):
        selected = selected.masked_fill(member[tokens], index)
    return selected


def settle_infinities(z) -> torch.Tensor:
    """Rows with +inf as their limit: 0 on the +inf tokens, -inf elsewhere."""
    infinite = z == float("inf")
    limit = torch.where(infinite, 0.0, _NEG_INF).to(z.dtype)
    return torch.where(infinite.any(1, keepdim=True), limit, z)


def _with_exact_probability(y, fast, at_mode, fast_prob) -> torch.Tensor:
    rows = (at_mode & ~fast_prob.isnan())[:, None]
    p = torch.where(rows, fast_prob[:, None], 0.5)
    fast_mass = log_sum_exp(y.masked_fill(~fast, _NEG_INF))
    rest_mass = log_sum_exp(y.masked_fill(fast, _NEG_INF))
    # A masked single-token mode 0 still gets its probability; with every other mode masked it is the only choice.
    lone = fast.sum() == 1
    inside = torch.where(fast_mass == _NEG_INF, torch.where(lone, 0.0, _NEG_INF), y - fast_mass)
    moved = torch.where(fast, inside + torch.log(p), y - rest_mass + torch.log1p(-p))
    moved = settle_infinities(moved.nan_to_num(nan=_NEG_INF, neginf=_NEG_INF))
    moved = moved - moved.amax(1, keepdim=True)
    return torch.where(rows & (rest_mass != _NEG_INF), moved, y)
