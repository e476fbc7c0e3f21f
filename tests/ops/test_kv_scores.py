"""Keep scores against loops written from the formulae."""

import math

import pytest
import torch

from adapt_kernels.dispatch import backend_module
from adapt_kernels.ops.kv_scores import kv_scores

SLOTS, HEADS, GROUP, LENGTH, WIDTH, QUERIES = 2, 2, 3, 11, 4, 3
LENGTHS = (1, 63, 64, 65, 200)  # around the blocks of columns of the kernels


@pytest.fixture(name="states")
def states_fixture():
    return random_states()


def random_states():
    generator = torch.Generator().manual_seed(0)
    shape = (SLOTS, HEADS, LENGTH, WIDTH)
    keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    queries = torch.randn(SLOTS, HEADS * GROUP, QUERIES, WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.ones(SLOTS, LENGTH, dtype=torch.bool)
    mask[1, :3] = False
    return keys, values, queries, mask


def attention(keys, query, mask, last):
    """Weights of one query over the positions up to `last`."""
    logits = [
        float(key @ query) / math.sqrt(WIDTH) if mask[t] and t <= last else -math.inf for t, key in enumerate(keys)
    ]
    weights = [math.exp(x) for x in logits]
    return [w / sum(weights) for w in weights]


def all_weights(keys, queries, mask, slot):
    """[head][group][query][position]"""
    return [
        [
            [
                attention(keys[slot, h], queries[slot, h * GROUP + g, i], mask[slot], LENGTH - QUERIES + i)
                for i in range(QUERIES)
            ]
            for g in range(GROUP)
        ]
        for h in range(HEADS)
    ]


def close(found, expected):
    # Math is in float32.
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=2e-6)


def test_norms(states):
    keys, values, _, _ = states
    close(kv_scores("key_norm", keys), (-keys.pow(2).sum(-1).sqrt()).float().tolist())
    close(kv_scores("value_norm", keys, values), values.pow(2).sum(-1).sqrt().float().tolist())


def test_key_diff_leaves_padding_out_of_the_mean(states):
    keys, _, _, mask = states
    found = kv_scores("key_diff", keys, mask=mask)
    unit = keys / keys.norm(dim=-1, keepdim=True)
    mean = unit[1, 0, 3:].mean(0)
    close(found[1, 0], [-float(k @ mean / mean.norm()) for k in unit[1, 0]])


def test_tova_is_the_last_query(states):
    keys, _, queries, mask = states
    found = kv_scores("tova", keys, queries=queries, mask=mask)
    for slot in range(SLOTS):
        weights = all_weights(keys, queries, mask, slot)
        close(found[slot], torch.tensor(weights)[:, :, -1].mean((0, 1)).tolist())


def test_snap(states):
    keys, _, queries, mask = states
    found = kv_scores("snap", keys, queries=queries, mask=mask)
    for slot in range(SLOTS):
        mean = torch.tensor(all_weights(keys, queries, mask, slot), dtype=torch.float64).mean((1, 2))
        pooled = [[sum(row[max(0, t - 2) : t + 3]) / 5 for t in range(LENGTH)] for row in mean.tolist()]
        close(found[slot], pooled)


def test_backends_agree_on_r_kv(native):
    for length in LENGTHS:
        assert_agrees_on_r_kv(length, native)


def assert_agrees_on_r_kv(length, backend):
    """Repeated keys near and far, with and without padding."""
    generator = torch.Generator().manual_seed(length)
    keys = torch.randn(2, 3, length, 24, generator=generator)
    keys[:, :, length // 3] = keys[:, :, length // 2] = keys[:, :, 0] * 3
    queries, mask = torch.randn(2, 6, 1, 24, generator=generator), torch.ones(2, length, dtype=torch.bool)
    mask[1, : length // 4] = False
    for own in (None, mask):
        plain = kv_scores("r_kv", keys, queries=queries, mask=own, backend="reference")
        found = kv_scores("r_kv", keys, queries=queries, mask=own, backend=backend)
        torch.testing.assert_close(found, plain, atol=1e-7, rtol=1e-5)  # sums of `length` floats


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_r_kv(states, backend):
    assert_r_kv(states, backend)


def assert_r_kv(states, backend):
    keys, _, queries, mask = states
    if backend != "reference":
        keys, queries = keys.float(), queries.float()
    keys[:, :, 6] = keys[:, :, 4] * 2  # similar ones: the newer of them is forgiven
    found = kv_scores("r_kv", keys, queries=queries, mask=mask, backend=backend)
    for slot in range(SLOTS):
        weights = torch.tensor(all_weights(keys, queries, mask, slot), dtype=torch.float64).mean(2).amax(1).tolist()
        for head in range(HEADS):
            pooled = [max(weights[head][max(0, t - 3) : t + 4]) for t in range(LENGTH)]
            redundancy = plain_redundancy(keys[slot, head], mask[slot])
            real = [t for t in range(LENGTH) if mask[slot, t]]
            expected = [0.07 * pooled[t] - 0.93 * redundancy[t] for t in real]
            close(found[slot, head][mask[slot]], expected)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_what_is_similar(backend, request):
    assert_similar_keys(request.getfixturevalue("native") if backend == "native" else backend)


def assert_similar_keys(backend):
    """Means worked out by hand of vectors whose cosines are exact in float32."""
    mean_similarity = backend_module("kv_scores", backend).mean_similarity
    even, first, second, zeros = [0.5] * 4, [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0] * 4
    for unit, expected in (
        # A cosine of .5 is not beyond it.
        ([even, first, second, zeros], [1.0, 0.5, 0.5, 0.0]),
        # Each forgives the newest of the others: the first three the last one, the last one the third.
        ([first] * 4, [3.0, 3.0, 2.0, 0.0]),
        # Not the opposite of a key, nor a key of zeros.
        ([first, [-1.0, 0.0, 0.0, 0.0], zeros, zeros], [-1.0, -1.0, 0.0, 0.0]),
        ([first], [0.0]),
        ([zeros] * 2, [0.0, 0.0]),
    ):
        found = mean_similarity(torch.tensor([unit]))
        assert torch.equal(found, torch.tensor([expected]) / len(unit)), (unit, found)
    assert mean_similarity(torch.empty(0, 3, 4)).shape == (0, 3)


def plain_redundancy(keys, mask):
    unit = keys / keys.norm(dim=-1, keepdim=True)
    cosine = [[float(a @ b) if i != j else 0.0 for j, b in enumerate(unit)] for i, a in enumerate(unit)]
    for i in range(LENGTH):
        for j in range(LENGTH):
            if not (mask[i] and mask[j]):
                cosine[i][j] = 0.0
        similar = [j for j in range(LENGTH) if cosine[i][j] > 0.5]
        if similar:
            cosine[i][similar[-1]] = 0.0
    mean = [sum(cosine[i][j] for i in range(LENGTH)) / LENGTH for j in range(LENGTH)]
    total = sum(math.exp(m) for m, real in zip(mean, mask, strict=True) if real)
    return [math.exp(m) / total for m in mean]


@pytest.mark.parametrize("name", ["key_norm", "value_norm", "key_diff", "snap", "tova", "r_kv"])
def test_a_slot_does_not_see_the_others(states, name):
    keys, values, queries, mask = states
    whole = kv_scores(name, keys, values, queries, mask)
    alone = kv_scores(name, keys[1:], values[1:], queries[1:], mask[1:])
    assert torch.equal(whole[1:], alone)
    assert kv_scores(name, keys[:0], values[:0], queries[:0], mask[:0]).shape == whole[:0].shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_read_as_float32(states, dtype):
    keys, values, queries, mask = (x if x.dtype == torch.bool else x.to(dtype) for x in states)
    for name in ("key_norm", "value_norm", "key_diff", "snap", "tova", "r_kv"):
        expected = kv_scores(name, keys.float(), values.float(), queries.float(), mask)
        torch.testing.assert_close(kv_scores(name, keys, values, queries, mask), expected)


def test_scale_and_softcap(states):
    keys, _, queries, _ = states
    logits = torch.einsum("shgd,shtd->shgt", queries.unflatten(1, (HEADS, GROUP))[..., -1, :], keys) * 0.3
    expected = (2.0 * torch.tanh(logits / 2.0)).softmax(-1).mean((1, 2)).float()
    close(kv_scores("tova", keys, queries=queries, scale=0.3, softcap=2.0), expected.tolist())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("h2o", torch.rand(1, 1, 3, 2)), ValueError, "name must be one of 'key_norm'"),
        (("key_norm", torch.rand(1, 3, 2)), TypeError, "keys must be a floating-point tensor of four dimensions"),
        (("value_norm", torch.rand(1, 1, 3, 2)), TypeError, "values must be a floating-point tensor"),
        (("tova", torch.rand(1, 2, 3, 2)), TypeError, "queries must be a floating-point tensor"),
        (("tova", torch.rand(1, 2, 3, 2), None, torch.rand(1, 3, 1, 2)), ValueError, r"a multiple of 2, 1 to 3, 2\]"),
        (("key_diff", torch.rand(1, 2, 3, 2), None, None, torch.ones(1, 3)), ValueError, r"mask must be bool \(1, 3\)"),
    ],
)
def test_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        kv_scores(*arguments)
