"""What mode_sample must do to one row, in NumPy float64 from the written semantics alone: sorts, no shared code."""

import numpy as np

NEG_INF = -np.inf
# A kept set may differ only where p lies this close (relative) to a cut; two backends decide by float64 sums.
BAND = {"reference": 1e-13, "native": 1e-11}
WIDEST_BAND = 1e-7


def as_row(logits):
    """One row of a torch tensor as float64, NaN as -inf and +inf as its limit."""
    z = logits.detach().double().numpy().copy()
    z[np.isnan(z)] = NEG_INF
    if (z == np.inf).any():
        z = np.where(z == np.inf, 0.0, NEG_INF)
    return z


def tempered(z, temperature=1.0):
    """z / T with its largest value at 0; T = 0 counts as 1 here."""
    if z.max() == NEG_INF:
        return z
    finite = z > NEG_INF
    y = np.full_like(z, NEG_INF)
    y[finite] = (z[finite] - z.max()) / (temperature or 1.0)
    return y


def members(mode_ids, vocab_size):
    """Per mode the tokens that select it, as bool; None is every token no other mode has."""
    listed = [i for i in mode_ids if i is not None]
    token = np.arange(vocab_size)
    return [~np.isin(token, listed) if i is None else token == i for i in mode_ids]


def gated(z, mode_ids, bias, only_modes=True):
    """A row at its mode token: the bias on each mode's tokens, and nothing else left if only_modes."""
    tokens = members(mode_ids, len(z))
    shift = sum(member * amount for member, amount in zip(tokens, bias, strict=True))
    moved = np.where(z == NEG_INF, NEG_INF, z + shift)
    return np.where(np.any(tokens, axis=0) | (not only_modes), moved, NEG_INF)


def kept(y, top_k=0, top_p=1.0, min_p=0.0):
    """The tokens left by top_k, then top_p of what is left, then min_p; equal values stay or go together."""
    mask = y > NEG_INF
    if not mask.any():
        return mask
    if 0 < top_k < len(y):
        mask &= y >= np.sort(y)[-top_k]
    if top_p < 1:
        values, above, total = _masses(y[mask])
        inside = above < top_p * total
        inside[0] = True
        mask &= y >= values[inside].min()
    if min_p > 0:
        mask &= np.exp(y.astype(np.longdouble)) >= min_p
    return mask


def near_cut(y, top_k=0, top_p=1.0, min_p=0.0, band=WIDEST_BAND):
    """Whether p is within `band` of a mass at which a token enters or leaves, or min_p of a token's ratio."""
    left = kept(y, top_k)
    if not left.any():
        return False
    _, above, total = _masses(y[left])
    at_p = 0 < top_p < 1 and (np.abs(above / total - top_p) <= band * top_p).any()
    ratio = np.exp(y[left].astype(np.longdouble))
    # At min_p = 1 the only ratio of 1 is an exact tie with the maximum.
    return at_p or 0 < min_p < 1 and (np.abs(ratio / min_p - 1) <= band).any()


def log_softmax(y):
    """Row log-probabilities; a row of -inf stays -inf."""
    if y.max() == NEG_INF:
        return y
    wide = y.astype(np.longdouble)
    return (wide - y.max() - np.log(np.exp(wide - y.max()).sum())).astype(np.float64)


def mode_probs(z, mode_ids):
    """P(mode) at T = 1, renormalised over the modes."""
    tokens = members(mode_ids, len(z))
    peak = z[np.any(tokens, axis=0)].max()
    mass = np.array([np.exp(z[member] - peak).sum() for member in tokens])
    return mass / mass.sum()


def _masses(values):
    """Distinct values in falling order, the mass strictly above each, and the mass of all."""
    distinct, counts = np.unique(values, return_counts=True)
    mass = (np.exp(distinct.astype(np.longdouble)) * counts)[::-1]
    return distinct[::-1], np.cumsum(mass) - mass, mass.sum()
