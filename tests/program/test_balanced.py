"""The balanced split: every mode's share differs by one at most, first modes first."""

import pytest

from adapt_kernels.program.balanced import balanced


@pytest.mark.parametrize("num_modes", [2, 3, 5])
@pytest.mark.parametrize("samples", range(1, 12))
def test_shares_differ_by_one_at_most(num_modes, samples):
    split = balanced(num_modes, samples)
    shares = [split.count(mode) for mode in range(num_modes)]
    assert split == sorted(split) and sum(shares) == samples
    assert shares == sorted(shares, reverse=True) and shares[0] - shares[-1] <= 1
