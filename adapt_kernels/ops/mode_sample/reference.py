"""mode_sample in plain torch, float64 throughout: the truth every backend is tested against."""

import torch

from adapt_kernels.ops.mode_sample.arguments import Rows, RowTensors
from adapt_kernels.ops.mode_sample.classes import class_edited
from adapt_kernels.ops.mode_sample.gate import (
    gated_logits,
    lane_sum,
    log_sum_exp,
    mode_probs,
    selected_modes,
    settle_infinities,
)
from adapt_kernels.ops.mode_sample.result import FLAG_EMPTY, FLAG_INF, FLAG_NAN, ModeSample
from adapt_kernels.philox import GROUP_SIZE, PURPOSE_GROUP, PURPOSE_TOKEN, gumbel

_NEG_INF = float("-inf")
# Rows are worked on in chunks: a dozen float64 copies of a 512 x 151936 batch would take 7 GB.
_CHUNK_ELEMENTS = 1 << 24


def mode_sample(rows: Rows) -> ModeSample:
    """See `adapt_kernels.mode_sample`."""
    each = rows.expanded()
    num_rows, vocab_size = each.logits.shape
    size = max(1, _CHUNK_ELEMENTS // max(vocab_size, GROUP_SIZE))
    parts = [_sample_chunk(each.chunk(start, start + size)) for start in range(0, max(num_rows, 1), size)]
    return ModeSample(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _sample_chunk(rows: RowTensors) -> ModeSample:
    nan = rows.logits.isnan()
    logits = class_edited(rows.logits, rows.token_classes, rows.class_scale, rows.class_bias)
    z = logits.double().masked_fill(logits.isnan(), _NEG_INF)
    exact = ~rows.fast_prob.isnan() & rows.at_mode
    greedy = (rows.temperature == 0) & ~exact
    temperature = torch.where(rows.temperature == 0, 1.0, rows.temperature)
    y = gated_logits(z, rows.mode_ids, rows.at_mode, rows.bias, temperature, rows.only_modes, rows.fast_prob)

    restricted = rows.at_mode & rows.only_modes
    kept = kept_set(y, rows.top_k, rows.top_p, rows.min_p, unfiltered=restricted)
    best = y.argmax(1)
    kept = torch.where(greedy[:, None], (y > _NEG_INF) & _one_hot(best, y), kept)
    empty = y.amax(1) == _NEG_INF
    fallback = _lowest_allowed(rows, restricted)
    drawn = torch.where(greedy, best, _draw(y, kept, rows.seeds, rows.step))
    forced = rows.forced_tokens >= 0
    tokens = torch.where(forced, rows.forced_tokens, torch.where(empty, fallback, drawn))

    raw = settle_infinities(z)
    processed = _log_softmax_at(y.masked_fill(~kept, _NEG_INF), tokens)
    flags = FLAG_NAN * nan.any(1) + FLAG_EMPTY * empty + FLAG_INF * (logits == float("inf")).any(1)
    out = torch.float64 if rows.logits.dtype == torch.float64 else torch.float32
    return ModeSample(
        tokens=tokens,
        modes=selected_modes(tokens, rows.mode_ids, z.shape[1]).masked_fill(~rows.at_mode, -1),
        logprobs=torch.where(empty & ~forced, 0.0, processed).to(out),
        raw_logprobs=_log_softmax_at(raw, tokens).to(out),
        tempered_logprobs=_log_softmax_at(y, tokens).to(out),
        mode_probs=mode_probs(z, rows.mode_ids).to(out),
        kept=kept.sum(1, dtype=torch.int32),
        flags=flags.to(torch.int32),
    )


def kept_set(y, top_k, top_p, min_p, unfiltered) -> torch.Tensor:
    """Bool [N, V]: the tokens of y [N, V] that top_k, then top_p, then min_p leave; `unfiltered` rows keep all.

    Each filter is a threshold on y, so equal values stay or go together; -inf is never kept.
    """
    kept = y > _NEG_INF
    vocab_size = y.shape[1]
    limited = ((top_k > 0) & (top_k < vocab_size) & ~unfiltered).nonzero().squeeze(1)
    if len(limited):
        largest = y[limited].topk(int(top_k[limited].max()), dim=1).values
        threshold = largest.gather(1, top_k[limited, None] - 1)
        kept[limited] &= y[limited] >= threshold
    nucleus = ((top_p < 1) & ~unfiltered).nonzero().squeeze(1)
    if len(nucleus):
        ordered = y[nucleus].masked_fill(~kept[nucleus], _NEG_INF).sort(dim=1, descending=True).values
        mass = ordered.exp().cumsum(1)
        above = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], 1)
        count = (above < top_p[nucleus, None] * mass[:, -1:]).sum(1, keepdim=True)
        kept[nucleus] &= y[nucleus] >= ordered.gather(1, count.clamp(min=1) - 1)
    relative = ((min_p > 0) & ~unfiltered).nonzero().squeeze(1)
    if len(relative):
        kept[relative] &= y[relative].exp() >= min_p[relative, None]
    return kept


def _draw(y, kept, seeds, step) -> torch.Tensor:
    """Two-level Gumbel draw over groups of GROUP_SIZE ids; see `adapt_kernels.philox_reference`."""
    num_rows, vocab_size = y.shape
    num_groups = -(-vocab_size // GROUP_SIZE)
    y = torch.nn.functional.pad(
        y.masked_fill(~kept, _NEG_INF), (0, num_groups * GROUP_SIZE - vocab_size), value=_NEG_INF
    ).view(num_rows, num_groups, GROUP_SIZE)
    group_ids = torch.arange(num_groups, device=y.device)
    noise = gumbel(seeds[:, None], step[:, None], PURPOSE_GROUP, group_ids)
    group = (lane_sum(y.exp()).log() + noise).argmax(1)
    token_ids = group[:, None] * GROUP_SIZE + torch.arange(GROUP_SIZE, device=y.device)
    noise = gumbel(seeds[:, None], step[:, None], PURPOSE_TOKEN, token_ids)
    lane = (y[torch.arange(num_rows, device=y.device), group] + noise).argmax(1)
    return group * GROUP_SIZE + lane


def _log_softmax_at(y, tokens) -> torch.Tensor:
    """log softmax(y) at one token per row; -inf, never NaN, where the token or the whole row is -inf."""
    # From the maximum first: the difference of two large numbers would lose a log-prob near 0.
    y = y - torch.where(y.amax(1, keepdim=True) == _NEG_INF, 0.0, y.amax(1, keepdim=True))
    value = y.gather(1, tokens[:, None])
    return torch.where(value == _NEG_INF, value, value - log_sum_exp(y)).squeeze(1)


def _lowest_allowed(rows: RowTensors, restricted) -> torch.Tensor:
    listed = [token_id for token_id in rows.mode_ids if token_id is not None]
    lowest = min(listed) if listed and len(listed) == len(rows.mode_ids) else 0
    return torch.where(restricted, lowest, torch.zeros_like(rows.forced_tokens))


def _one_hot(index, y) -> torch.Tensor:
    return torch.arange(y.shape[1], device=y.device) == index[:, None]
