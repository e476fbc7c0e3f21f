"""The rule by which positions stay, and the settings that ask for it."""

import math

import numpy as np
import pytest
import torch
from keep_rule import plain

import adapt_kernels as ak

INF, NAN = math.inf, math.nan
FIGURE = torch.tensor([[INF, INF, 0.2, 0.1, 0.5, 0.1, 0.4, 0.2, 0.2, 0.1, 0.3]])


class TestKeptPositions:
    def test_golden_figure(self):
        kept = ak.kept_positions(FIGURE, 3, 4)
        assert kept.tolist() == [[0, 1, 4, 6, 8, 9, 10]] and kept.dtype == torch.int64
        later = torch.cat([FIGURE.gather(1, kept), torch.tensor([[0.7, 0.4, 0.1, 0.2]])], 1)
        assert ak.kept_positions(later, 3, 4).tolist() == [[0, 1, 2, 7, 8, 9, 10]]
        assert ak.kept_positions(FIGURE, 3, 2).tolist() == [[0, 1, 8, 9, 10]]

    @pytest.mark.parametrize(
        ("budget", "window", "keep", "held", "steps"),
        [
            (5000, 2000, 0.3, 2900, 2101),
            (5000, 2000, 0.4, 3200, 1801),
            (3000, 1000, 0.3, 1600, 1401),
            (3000, 1500, 0.4, 2100, 901),
        ],
    )
    def test_golden_marks(self, budget, window, keep, held, steps):
        settings = ak.KeepKV(budget, keep, window)
        assert settings.held == held and budget + 1 - settings.held == steps

    @pytest.mark.parametrize("seed", range(40))
    def test_equals_plain_python(self, seed):
        random = np.random.default_rng(seed)
        length = int(random.integers(1, 24))
        window = int(random.integers(0, length + 1))
        keep = int(random.integers(0, length - window + 1))
        # Few values, so that ties are common.
        scores = random.choice([0.0, 0.5, 1.0, -INF, INF, NAN], size=(3, length), p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
        protected = random.random((3, length)) < 0.15
        protected[:, 0] |= np.isnan(scores).all(1)
        expected = [plain(*row) for row in zip(scores, [window] * 3, [keep] * 3, protected, strict=True)]
        too_many = protected.sum(1) > keep + window
        blind = [
            keep + window < length
            and all(math.isnan(s) for s, p in zip(row[: length - window], own, strict=False) if not p)
            and bool((~own[: length - window]).any())
            and own[: length - window].sum() < keep
            for row, own in zip(scores, protected, strict=True)
        ]
        given = torch.tensor(scores), window, keep, torch.tensor(protected)
        if too_many.any() or any(blind):
            with pytest.raises(ValueError, match="protects|all scores are NaN"):
                ak.kept_positions(*given)
        else:
            assert ak.kept_positions(*given).tolist() == expected

    def test_ties_go_to_the_older(self):
        assert ak.kept_positions(torch.zeros(1, 300), 2, 3).tolist() == [[0, 1, 2, 298, 299]]

    def test_padding_goes_first(self):
        padding = torch.tensor([[True, True, False, False, False, False]])
        scores = torch.tensor([[INF, NAN, NAN, -INF, 1.0, 0.0]])
        for keep, expected in ((4, [1, 2, 3, 4, 5]), (3, [2, 3, 4, 5]), (2, [3, 4, 5]), (1, [4, 5])):
            kept = ak.kept_positions(scores, 1, keep, padding=padding).tolist()[0]
            assert kept == (expected if keep < 4 else [0, *expected[1:]])  # of padding the older one stays
        with pytest.raises(ValueError, match="row 0 has NaN for a score everywhere"):
            ak.kept_positions(torch.full((1, 6), NAN), 1, 1, padding=padding)
        assert ak.kept_positions(scores, 1, 1, padding, padding).tolist() == [[0, 1]]  # what is protected stays

    def test_heads_have_sets_of_their_own(self):
        scores = torch.tensor([[[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]])
        assert ak.kept_positions(scores, 1, 1).tolist() == [[[0, 3], [2, 3]]]
        protected = torch.tensor([[False, True, False, False]])
        assert ak.kept_positions(scores, 1, 1, protected).tolist() == [[[1, 3], [1, 3]]]

    def test_a_row_that_protects_more_than_its_share_gives_window(self):
        protected = torch.zeros(2, 8, dtype=torch.bool)
        protected[0, :4] = True
        kept = ak.kept_positions(torch.arange(8.0).expand(2, 8), 3, 2, protected)
        assert kept.tolist() == [[0, 1, 2, 3, 7], [3, 4, 5, 6, 7]]

    def test_everything_and_nothing(self):
        assert ak.kept_positions(torch.rand(2, 5), 2, 3).tolist() == [[0, 1, 2, 3, 4]] * 2
        assert ak.kept_positions(torch.rand(2, 5), 0, 0).shape == (2, 0)
        assert ak.kept_positions(torch.rand(0, 5), 1, 2).shape == (0, 3)
        assert ak.kept_positions(torch.full((1, 4), NAN), 2, 2).tolist() == [[0, 1, 2, 3]]  # nothing to choose

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ((torch.rand(1, 4), 3, 2), ValueError, "at most the 4 positions of scores; got keep=2 and window=3"),
            ((torch.rand(4), 1, 1), TypeError, r"scores must be a real tensor \[B, T\]"),
            ((torch.rand(1, 4), 1.0, 1), TypeError, r"window must be a number of positions \(int\); got 1.0"),
            ((torch.rand(1, 4), 1, -1), ValueError, "keep must be at least 0; got -1"),
            (
                (torch.rand(1, 4), 1, 1, torch.ones(1, 4)),
                TypeError,
                "protected must be a bool tensor; got torch.float32",
            ),
            ((torch.rand(1, 4), 1, 1, torch.ones(2, 4) > 0), ValueError, r"protected must have shape \(1, 4\)"),
            ((torch.rand(1, 4), 1, 1, None, torch.ones(3) > 0), ValueError, r"padding must have shape \(1, 4\)"),
            (
                (torch.rand(2, 4), 1, 1, torch.tensor([[False] * 4, [True] * 3 + [False]])),
                ValueError,
                "row 1 protects 3 positions, and only 2 may be held after an eviction",
            ),
            ((torch.tensor([[1.0] * 4, [NAN] * 4]), 1, 1), ValueError, "row 1 has NaN for a score everywhere"),
        ],
    )
    def test_refuses(self, arguments, error, text):
        with pytest.raises(error, match=text):
            ak.kept_positions(*arguments)


class TestKeepKV:
    def test_int_keep_is_what_is_held(self):
        settings = ak.KeepKV(budget=640, keep=512, window=64)
        assert settings.held == 512 and settings.outside(641) == 448

    @pytest.mark.parametrize(
        ("settings", "error", "text"),
        [
            ({"budget": 8, "keep": 0.5, "window": 8}, ValueError, "got window=8 and budget=8"),
            ({"budget": 8, "keep": 9, "window": 2}, ValueError, "got keep=9, window=2 and budget=8"),
            ({"budget": 8, "keep": 8, "window": 2}, ValueError, "got keep=8, window=2 and budget=8"),
            ({"budget": 8, "keep": 2, "window": 3}, ValueError, "got keep=2, window=3 and budget=8"),
            ({"budget": 8, "keep": 1.5, "window": 3}, ValueError, r"must lie in \[0, 1\]; got 1.5"),
            ({"budget": 8, "keep": NAN, "window": 3}, ValueError, r"must lie in \[0, 1\]; got nan"),
            ({"budget": 8, "keep": True, "window": 3}, TypeError, "keep must be a share"),
            ({"budget": 8.0, "keep": 0.5, "window": 3}, TypeError, "budget must be a number of positions"),
            ({"budget": 0, "keep": 0.5, "window": 0}, ValueError, "budget must be at least 1; got 0"),
            ({"budget": 8, "keep": 0.0, "window": 0}, ValueError, "leave no position"),
            ({"score": "h2o"}, ValueError, "score must be one of 'recent', 'random', .*; got 'h2o'"),
            ({"score": 3}, TypeError, "object with score.*; got int"),
            ({"count": "prompt"}, ValueError, "count must be 'new' or 'all'; got 'prompt'"),
            ({"sinks": 4}, ValueError, "after an eviction, 6 positions; got sinks=4 and window=3"),
            ({"sinks": -1}, ValueError, "sinks must be at least 0"),
        ],
    )
    def test_refuses(self, settings, error, text):
        with pytest.raises(error, match=text):
            ak.KeepKV(**{"budget": 8, "keep": 0.5, "window": 3, **settings})
