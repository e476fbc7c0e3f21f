"""Run by test_branch_triton.py in a process under TRITON_INTERPRET=1."""

import pytest
import torch
from test_branch import CASES, LARGE, random_case

from adapt_kernels.ops.branch import branch


@pytest.mark.parametrize("seed", [*CASES, *(pytest.param(n, marks=pytest.mark.full) for n in LARGE)])
def test_equals_the_reference(seed):
    case = random_case(seed)
    for ours, theirs in zip(branch(*case, backend="triton"), branch(*case, backend="reference"), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
