"""Edits by token class: every backend equals the call on logits that plain torch edited before."""

import math

import pytest
import torch
from scipy.stats import chisquare

import adapt_kernels as ak

INF = math.inf
SETTINGS = {"flat": {}, "k": {"top_k": 7}, "p": {"top_p": 0.7}, "all": {"top_k": 30, "top_p": 0.9, "min_p": 0.02}}
SETTINGS |= {"greedy": {"temperature": 0.0}, "hot": {"temperature": 1.7}}


def edited(logits, classes, scale, bias):
    """One row and id at a time, each step rounded to the dtype as torch rounds it."""
    real = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).clone()
    for row in range(len(real)):
        for token in range(real.shape[1]):
            own = int(classes[token]) if token < len(classes) else 0
            if real[row, token] == -INF or bias[row, own] == -INF:
                real[row, token] = -INF
            else:
                real[row, token] = real[row, token] * scale[row, own] + bias[row, own]
    return real


def case(vocab_size, rows, num_classes, density, dtype=torch.float32, seed=0, dense=False):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocab_size, generator=generator) * 3).to(dtype)
    classes = torch.randint(1, num_classes, (vocab_size,), generator=generator).to(torch.uint8)
    classes[torch.rand(vocab_size, generator=generator) > density] = 0
    scale = 1 + torch.rand(rows, num_classes, generator=generator).round(decimals=2)
    bias = torch.randn(rows, num_classes, generator=generator) * 4
    bias[torch.rand(rows, num_classes, generator=generator) < 0.3] = -INF
    if not dense:
        scale[:, 0], bias[:, 0] = 1, 0
    scale[::3], bias[::3] = 1, 0  # rows in which no class acts
    return logits, classes, scale, bias


def agree(sample, logits, classes, scale, bias, **settings):
    want = ak.mode_sample(edited(logits, classes, scale, bias), backend="reference", **settings)
    got = sample(logits, token_classes=classes, class_scale=scale, class_bias=bias, **settings)
    for name in ("tokens", "modes", "kept", "flags"):
        assert getattr(got, name).tolist() == getattr(want, name).tolist(), name
    for name in ("logprobs", "raw_logprobs", "tempered_logprobs", "mode_probs"):
        assert torch.allclose(getattr(got, name), getattr(want, name).to(getattr(got, name)), rtol=0, atol=2e-6), name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dense", [False, True], ids=["some ids", "class 0 too"])
def test_equals_logits_edited_before(sample, settings, dense):
    for seed, (vocab_size, density) in enumerate([(1000, 0.1), (130, 0.9), (1, 1.0), (257, 0.0)]):
        agree(sample, *case(vocab_size, 7, 5, density, seed=seed, dense=dense), seeds=3, step=2, **SETTINGS[settings])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_edited_in_float32(sample, dtype):
    agree(sample, *case(300, 6, 4, 0.3, dtype), seeds=1, top_p=0.8)


@pytest.mark.parametrize("gate", [{"mode_bias": 1.5}, {"fast_prob": 0.3}], ids=str)
def test_the_gate_sees_them(sample, gate):
    at_mode = torch.arange(6) % 2 == 0
    agree(sample, *case(300, 6, 4, 0.5), modes=[5, 6, 200], at_mode=at_mode, seeds=1, **gate)


def test_infinities_nan_and_empty_rows(sample):
    logits = torch.zeros(6, 200)
    logits[0, 3] = logits[1, 150] = INF
    logits[2, 3] = math.nan
    logits[3] = -INF
    classes = torch.ones(200, dtype=torch.uint8)
    classes[100:] = 0
    bias = torch.tensor([[0, -INF], [0, -INF], [0, 2], [0, 2], [-INF, -INF], [-INF, 0]])
    got = sample(logits, token_classes=classes, class_bias=bias, seeds=1)
    inf, nan, empty = 4, 1, 2
    assert got.flags.tolist() == [0, inf, nan, empty, empty, 0]
    assert got.tokens[1] == 150 and got.kept.tolist() == [100, 1, 199, 0, 0, 100]
    assert not got.logprobs.isnan().any()


def test_a_ban_of_many_ids_is_never_drawn(sample):
    classes = torch.zeros(500, dtype=torch.uint8)
    classes[torch.randperm(500, generator=torch.Generator().manual_seed(0))[:400]] = 1
    bias = torch.tensor([[0.0, -INF]]).repeat(512, 1)
    got = sample(torch.zeros(512, 500), token_classes=classes, class_bias=bias, seeds=1)
    assert got.kept.tolist() == [100] * 512 and not classes[got.tokens].any()
    # The same draws as over the logits that the ban leaves.
    logits = torch.zeros(512, 500).masked_fill(classes.bool(), -INF)
    assert got.tokens.tolist() == sample(logits, seeds=1).tokens.tolist()


def test_the_draw_follows_the_edited_distribution(sample):
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).repeat(4000, 1)
    bias = torch.tensor([[0.0, math.log(3.0)]]).repeat(4000, 1)
    got = sample(logits, token_classes=torch.tensor([0, 1, 0, 1], dtype=torch.uint8), class_bias=bias, seeds=1)
    weights = torch.tensor([0.1, 0.6, 0.3, 1.2], dtype=torch.float64)
    assert chisquare(torch.bincount(got.tokens.cpu(), minlength=4), weights / weights.sum() * 4000).pvalue > 1e-4


def test_no_rows(sample):
    classes = torch.ones(10, dtype=torch.uint8)
    got = sample(torch.zeros(0, 10), token_classes=classes, class_bias=torch.zeros(0, 2), seeds=1)
    assert got.tokens.shape == (0,)


@pytest.mark.parametrize(
    "edits, error, text",
    [
        ({"class_bias": torch.zeros(2, 3)}, ValueError, "class_scale and class_bias need token_classes="),
        ({"token_classes": [0, 1], "class_bias": torch.zeros(2, 3)}, TypeError, "must be a uint8 tensor"),
        ({"token_classes": torch.zeros(2, 2), "class_bias": torch.zeros(2, 3)}, TypeError, "must be a uint8 tensor"),
        ({"token_classes": torch.zeros(11, dtype=torch.uint8), "class_bias": torch.zeros(2, 3)}, ValueError, "only 10"),
        ({"token_classes": torch.zeros(10, dtype=torch.uint8)}, ValueError, r"\[2, E\].*got none"),
        (
            {"token_classes": torch.zeros(10, dtype=torch.uint8), "class_bias": torch.zeros(3, 1)},
            ValueError,
            r"\[2, E\].*'class_bias': \(3, 1\)",
        ),
        (
            {
                "token_classes": torch.zeros(10, dtype=torch.uint8),
                "class_bias": torch.zeros(2, 2),
                "class_scale": torch.ones(2, 3),
            },
            ValueError,
            r"\(2, 3\)",
        ),
        (
            {"token_classes": torch.full((10,), 4, dtype=torch.uint8), "class_bias": torch.zeros(2, 4)},
            ValueError,
            "has class 4, and class_bias 4 columns",
        ),
    ],
)
def test_refused_by_text(edits, error, text):
    with pytest.raises(error, match=text):
        ak.mode_sample(torch.zeros(2, 10), seeds=1, **edits)


def test_compiles_without_a_graph_break():
    logits, classes, scale, bias = case(300, 4, 3, 0.5)

    def draw(logits):
        return ak.mode_sample(logits, seeds=1, token_classes=classes, class_scale=scale, class_bias=bias).tokens

    assert torch.compile(draw, fullgraph=True, backend="eager")(logits).tolist() == draw(logits).tolist()
