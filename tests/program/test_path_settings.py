"""Settings of `Paths`, who stays by a score, DeepConf's confidences, and when answers agree."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import adapt_kernels as ak
from adapt_kernels.program.path_scores import Windows, kept_rows, own_statistics, top_values
from adapt_kernels.program.votes import majority_chance

NAN = math.nan


def answer(ids):
    return int(ids[-1])


REFUSED = [
    ({}, ValueError, "nothing ends a row"),
    ({"keep": 4}, ValueError, "keep=4 needs at"),
    ({"at": 4}, ValueError, "nothing ends a row"),
    ({"at": 4, "below": 1.0}, ValueError, "at=4 needs keep"),
    ({"keep": 0, "at": 4}, ValueError, "at least 1 row; got 0"),
    ({"keep": -2, "at": 4}, ValueError, "at least 1 row; got -2"),
    ({"keep": True, "at": 4}, TypeError, "keep must be a number of rows"),
    ({"keep": "4", "at": 4}, TypeError, "keep must be a number of rows"),
    *(({"keep": share, "at": 4}, ValueError, r"inside \(0, 1\)") for share in (0.0, 1.0, 1.5, -0.5, NAN, math.inf)),
    ({"keep": 1, "at": 0}, ValueError, "at must be at least 1; got 0"),
    ({"keep": 1, "at": 4.0}, TypeError, "at must be an integer"),
    ({"keep": 1, "at": True}, TypeError, "at must be an integer"),
    ({"keep": 1, "at": ()}, ValueError, "at must be new tokens"),
    ({"keep": 1, "at": (8, 4)}, ValueError, r"rising ones such as \(32, 64\); got \(8, 4\)"),
    ({"keep": 1, "at": [4, 4]}, ValueError, "rising ones"),
    ({"keep": 1, "at": 4, "score": "entropy"}, ValueError, "'confidence', 'logprob', 'random'"),
    ({"keep": 1, "at": 4, "score": 3}, TypeError, "a function of a PathView"),
    ({"below": NAN}, ValueError, "not NaN"),
    ({"below": "1"}, TypeError, "below must be a confidence"),
    ({"below": 1.0, "top": 0}, ValueError, "top must be at least 1"),
    ({"below": 1.0, "window": 0}, ValueError, "window must be at least 1"),
    ({"agree": 4}, TypeError, "agree must be an adapt_kernels.Agree"),
]


@pytest.mark.parametrize(("settings", "kind", "text"), REFUSED)
def test_refused(settings, kind, text):
    with pytest.raises(kind, match=text):
        ak.Paths(**settings)


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"answer": answer}, ValueError, "one of k, beta and share; got none"),
        ({"k": 4, "beta": 0.9, "answer": answer}, ValueError, "got k, beta"),
        ({"k": 4}, TypeError, "answer must be a function"),
        ({"k": 0, "answer": answer}, ValueError, "k must be an integer of at least 1"),
        ({"beta": 1.5, "answer": answer}, ValueError, r"beta must lie in \(0, 1\]"),
        ({"share": 0, "answer": answer}, ValueError, r"share must lie in \(0, 1\]"),
    ],
)
def test_refused_agreement(settings, kind, text):
    with pytest.raises(kind, match=text):
        ak.Agree(**settings)


def test_refused_bar():
    for percentile in (0, 100, NAN, True, "9"):
        with pytest.raises(ValueError, match="10 keeps about 90 % of the rows"):
            ak.Bar(percentile)
    with pytest.raises(ValueError, match="warmup must be at least 1"):
        ak.Bar(10, warmup=0)


def test_how_many_stay():
    assert [ak.Paths(4, 8).kept_of(0, n) for n in (16, 3)] == [4, 4]
    # An integer is what is left in the end, and each stage halves.
    assert [ak.Paths(4, (8, 16, 32)).kept_of(stage, 16) for stage in range(3)] == [16, 8, 4]
    shares = ak.Paths(0.29, np.array([8, 16]))
    assert [shares.kept_of(0, n) for n in (100, 7, 3, 1)] == [29, 2, 1, 1] and shares.at == (8, 16)


def test_best_of_each_group():
    assert kept_rows([1.0, 3.0, 2.0, 9.0], [0, 0, 0, 1], lambda n: 1) == [False, True, False, True]
    assert kept_rows([1.0, 2.0, 2.0, 2.0], [0] * 4, lambda n: 2) == [False, True, True, False]  # ties: earlier rows
    assert kept_rows([NAN, -math.inf, NAN, 0.0], [0] * 4, lambda n: 3) == [True, True, False, True]
    assert kept_rows([NAN, NAN], [0, 0], lambda n: 2) == [True, True]  # nothing to choose
    with pytest.raises(ValueError, match="all 2 scores of a prompt are NaN"):
        kept_rows([1.0, NAN, NAN], [0, 1, 1], lambda n: 1)


def test_confidence_golden():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for top, expected in ((2, 0.940190), (4, 1.940190), (20, 1.940190)):
        confidence, drawn = own_statistics(logits, torch.tensor([1]), top, logprobs=True)
        assert confidence.item() == pytest.approx(expected, abs=5e-7)  # published with six decimals
        assert drawn.item() == pytest.approx(-1.440190, abs=5e-7)


def test_confidence_leaves_out_what_cannot_be_drawn():
    full = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    banned = torch.tensor([[2.0, 1.0, 0.0, -1.0, -math.inf, NAN]])
    both = [own_statistics(logits, torch.tensor([0]), 6, True) for logits in (full, banned)]
    assert torch.equal(both[0][0], both[1][0]) and torch.equal(both[0][1], both[1][1])


def test_a_row_s_statistics_do_not_see_other_rows():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 4
    logits[1, 7], logits[2, 5], logits[3] = NAN, -math.inf, -math.inf
    tokens = torch.tensor([3, 9, 5, 0])  # the third was forced where the model has nothing
    confidence, drawn = own_statistics(logits, tokens, 20, True)
    for row in range(3):
        alone = own_statistics(logits[row : row + 1], tokens[row : row + 1], 20, True)
        assert alone[0] == confidence[row] and alone[1] == drawn[row]
    clean = logits[:3].double().masked_fill(logits[:3].isnan(), -math.inf)
    expected = clean.log_softmax(1)
    # The native pass returns float32.
    assert torch.allclose(confidence[:3], -expected.topk(20, 1).values.mean(1), rtol=0, atol=2e-6)
    assert torch.allclose(drawn[:2], expected.gather(1, tokens[:2, None])[:2, 0], rtol=0, atol=2e-6)
    assert drawn[2] == -math.inf and confidence[3].isnan()


@pytest.mark.parametrize("columns", [3, 128, 700, 5000])
def test_top_values(columns):
    logits = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns)).round(decimals=1)  # ties
    for count in (1, 4, 20):
        expected = logits.topk(min(count, columns), 1).values
        assert torch.equal(top_values(logits, count).sort(1, descending=True).values, expected)


def test_windows():
    values = torch.tensor([[4.0, 1, 3, 2, 9], [5, 5, 1, 7, 7]], dtype=torch.float64)
    windows, alive = Windows(2, 2, "cpu"), torch.tensor([True, True])
    assert windows.groups(torch.tensor([0, 0])).tolist() == [0, 0]
    windows.add(values[:, 0], alive)
    assert windows.groups(torch.tensor([1, 1])).tolist() == [4, 5]  # shorter than a window: the mean
    assert windows.lowest.tolist() == [math.inf, math.inf]
    windows.add(values[:, 1], alive)
    windows.add(values[:, 2], torch.tensor([True, False]))  # the second row has ended
    windows.add(values[:, 3], torch.tensor([True, False]))
    assert windows.lowest.tolist() == [2, 5] and windows.sums.tolist() == [10, 10]


def test_majority_golden():
    expected = {(3, 0): 0.9375, (4, 0): 0.96875, (5, 1): 0.9375, (6, 1): 0.964844, (7, 2): 0.945312, (8, 2): 0.967285}
    for counts, chance in expected.items():
        assert majority_chance(*counts) == pytest.approx(chance, abs=5e-7)  # published with six decimals


def test_agreement():
    def agrees(counts, **rule):
        return ak.Agree(answer=answer, **rule).holds(counts)

    assert [agrees(c, k=4) for c in ([], [3], [1, 4], [3, 3])] == [False, False, True, False]
    assert [agrees(c, beta=0.95) for c in ([3], [4], [1, 5], [6, 1], [2, 7])] == [False, True, False, True, False]
    assert [agrees(c, share=0.75) for c in ([3], [3, 1], [4, 2])] == [False, True, False]
    assert agrees([3], share=0.75, least=3)


def output(new, lengths, prompts, ends=None, scores=None):
    sequences = torch.cat([torch.full((len(new), 3), 99), torch.tensor(new)], 1)
    return SimpleNamespace(
        sequences=sequences,
        prompt_length=3,
        lengths=torch.tensor(lengths),
        prompt_of_row=torch.tensor(prompts),
        path_ends=ends,
        path_scores=None if scores is None else torch.tensor(scores),
    )


def test_votes():
    new = [[1, 5], [1, 6], [6, 0], [7, 7], [1, 8]]
    out = output(new, [2, 2, 1, 2, 2], [0, 0, 0, 1, 1])
    assert ak.vote(out, answer) == [6, 7]  # the second prompt's tie goes to its lower row
    assert ak.vote(out, lambda ids: None if ids[-1] == 6 else ids[-1]) == [5, 7]  # a tensor's number counts
    assert ak.vote(out, lambda ids: tuple(ids)) == [(1, 5), (7, 7)]
    assert ak.vote(out, lambda ids: None) == [None, None]
    assert ak.vote(out, answer, weights=[9, 1, 1, 1, 2]) == [5, 8]


def test_votes_of_rows_that_live():
    new = [[5], [6], [6], [7]]
    out = output(new, [1] * 4, [0] * 4, ["length", "pruned", "below", "finished"], [2.0, 9.0, 9.0, NAN])
    assert ak.vote(out, answer) == [5]
    assert ak.vote(out, answer, weights="path_score") == [5]  # the unscored row weighs as much: a tie
    out = output(new, [1] * 4, [0] * 4, ["finished"] * 4, [2.0, 1.5, 1.5, NAN])
    assert ak.vote(out, answer, weights="path_score") == [6]


def test_refused_votes():
    out = output([[5], [6]], [1, 1], [0, 0], ["finished"] * 2, [-1.0, 1.0])
    with pytest.raises(ValueError, match="row 0 has -1.0; 'logprob'"):
        ak.vote(out, answer, weights="path_score")
    with pytest.raises(ValueError, match="one number per row"):
        ak.vote(out, answer, weights=[1.0])
    with pytest.raises(ValueError, match="'path_score' or one number"):
        ak.vote(out, answer, weights="score")
    with pytest.raises(TypeError, match=r"something hashable.*\[5\] for row 0"):
        ak.vote(out, lambda ids: [int(ids[0])])
    with pytest.raises(ValueError, match="which rows share a prompt"):
        ak.vote(SimpleNamespace(sequences=None), answer)
