"""Run by test_kv_scores_triton.py in a process under TRITON_INTERPRET=1."""

import math

import pytest
import torch
from test_kv_scores import LENGTHS, assert_agrees_on_r_kv, assert_r_kv, assert_similar_keys, random_states
from torch.nn import functional

from adapt_kernels.ops.kv_scores import kv_scores, reference
from adapt_kernels.ops.kv_scores.triton_kernel import mean_similarity

WIDTHS = (1, 5, 32, 33, 80, 129, 256)


@pytest.mark.parametrize("length", LENGTHS)
def test_agrees_with_the_reference_on_r_kv(length):
    assert_agrees_on_r_kv(length, "triton")


def test_r_kv():
    assert_r_kv(random_states(), "triton")


def test_what_is_similar():
    assert_similar_keys("triton")


@pytest.mark.usefixtures("poisoned_workspace")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("heads", "length"), [(2, 97), *(pytest.param(3, n, marks=pytest.mark.full) for n in (2, 31, 32, 33, 128, 300))]
)
def test_means(heads, length, width):
    """Keys some of which are alike, repeated or zeros; a view with NaN around it."""
    generator = torch.Generator().manual_seed(1000 * width + length)
    keys = torch.randn(heads, length, width, generator=generator)
    keys += torch.randn(heads, 1, width, generator=generator)
    keys[:, ::7] = keys[:, length // 2, None]
    keys[:, : length // 5] = 0
    unit = torch.full((heads, length + 1, 2 * width + 2), math.nan)[:, :length, : 2 * width : 2]
    unit.copy_(functional.normalize(keys, dim=-1))
    expected = reference.mean_similarity(unit.double())
    # A sum of `length` cosines by way of a sum of keys, in float32.
    torch.testing.assert_close(mean_similarity(unit).double(), expected, atol=1e-6, rtol=0)
    similar = (unit @ unit.transpose(1, 2) > 0.5).sum(-1)
    assert length == 2 or (similar.max() > 2 and (width < 5 or similar.min() < 2))


def test_scores_of_a_row_do_not_depend_on_the_others():
    keys, values, queries, mask = (x if x.dtype == torch.bool else x.float() for x in random_states())
    whole = kv_scores("r_kv", keys, values, queries, mask, backend="triton")
    alone = kv_scores("r_kv", keys[1:], values[1:], queries[1:], mask[1:], backend="triton")
    assert torch.equal(whole[1:], alone)


def test_half_precision_is_read_as_float32():
    keys, values, queries, mask = (x if x.dtype == torch.bool else x.bfloat16() for x in random_states())
    expected = kv_scores("r_kv", keys.float(), values.float(), queries.float(), mask, backend="triton")
    assert torch.equal(kv_scores("r_kv", keys, values, queries, mask, backend="triton"), expected)


def test_float64_is_left_to_the_reference():
    keys, _, queries, mask = random_states()
    with pytest.raises(ValueError, match="backend='triton' takes float32, bfloat16 or float16 logits; got float64"):
        kv_scores("r_kv", keys, queries=queries, mask=mask, backend="triton")
