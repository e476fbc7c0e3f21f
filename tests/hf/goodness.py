"""Chi-square goodness of fit with exact support."""

import numpy as np
from scipy import stats


def assert_fits(tokens, probabilities, least_p: float = 1e-4) -> None:
    """`tokens` (any shape) are draws from `probabilities`; a token of probability 0 must never appear."""
    counts = np.bincount(np.asarray(tokens).reshape(-1), minlength=len(probabilities)).astype(float)
    p = np.asarray(probabilities, dtype=np.float64)
    assert len(counts) == len(p)
    assert counts[p == 0].sum() == 0, f"drew impossible outcomes {np.flatnonzero(counts * (p == 0))}"
    expected = p / p.sum() * counts.sum()
    rare = expected < 5
    if expected[rare].sum() > 0:
        counts, expected = (
            np.append(counts[~rare], counts[rare].sum()),
            np.append(expected[~rare], expected[rare].sum()),
        )
    else:
        counts, expected = counts[~rare], expected[~rare]
    if len(counts) > 1:
        p_value = stats.chisquare(counts, expected).pvalue
        assert p_value > least_p, f"chi-square p = {p_value:.2e}: {counts} against {expected}"


def assert_rate(hits, draws: int, probability: float) -> None:
    """The share of hits is `probability` within 3 standard errors."""
    error = (probability * (1 - probability) / draws) ** 0.5
    assert abs(float(hits) / draws - probability) <= 3 * error, (
        f"{float(hits) / draws} against {probability} +- {error}"
    )
