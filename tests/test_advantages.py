"""ADaPT's rewards and advantages: the published group, a token-by-token port, and the separate scheme."""

import numpy as np
import pytest
import torch

import adapt_kernels as ak

GROUP = {
    "outcome": torch.tensor([1.8, 0.8, 1.8, 1.8]),
    "lengths": torch.tensor([4, 3, 2, 2]),
    "groups": torch.zeros(4, dtype=torch.int64),
    "modes": torch.tensor([1, 1, 0, 0]),
}
CORRECT = torch.tensor([1, 0, 1, 1])


def port(outcome, bonus, lengths, groups, modes):
    """The released arithmetic on a [B, L] reward tensor: reward-to-go, mean and std over all tokens of a group."""
    width = int(lengths.max())
    rewards, valid = np.zeros((len(outcome), width)), np.zeros((len(outcome), width), bool)
    for i, length in enumerate(lengths.tolist()):
        valid[i, :length] = True
        rewards[i, length - 1] = outcome[i]
        if modes[i] == 1:
            rewards[i, 0] = bonus[i] if length == 1 else rewards[i, 0] + bonus[i]
    to_go = np.flip(np.cumsum(np.flip(rewards, 1), 1), 1)
    advantages = np.zeros_like(to_go)
    for group in set(groups.tolist()):
        rows = (groups == group).numpy()
        tokens = to_go[rows][valid[rows]]
        advantages[rows] = (to_go[rows] - tokens.mean()) / (tokens.std() + 1e-6) * valid[rows]
    return advantages


def test_the_published_group():
    bonus = ak.efficiency_bonus(CORRECT, GROUP["groups"], GROUP["modes"])
    assert bonus.tolist() == [-0.5, -0.5, 0.0, 0.0]
    advantages = ak.adapt_advantages(mode_bonus=bonus, scheme="reference", **GROUP)
    expected = torch.tensor(
        [
            [-0.259160, 0.691093, 0.691093, 0.691093],
            [-2.159667, -1.209413, -1.209413, 0],
            [0.691093, 0.691093, 0, 0],
            [0.691093, 0.691093, 0, 0],
        ]
    )
    torch.testing.assert_close(advantages.expand(4), expected, rtol=0, atol=1e-6)
    assert advantages.expand(6).shape == (4, 6) and not advantages.expand(6)[:, 4:].any()


def test_a_rare_wrong_answer_is_an_outlier():
    outcome = torch.tensor([1.8] * 8 + [1.8] * 7 + [0.8])
    lengths, modes = torch.tensor([2000] * 8 + [200] * 8), torch.tensor([1] * 8 + [0] * 8)
    advantages = ak.adapt_advantages(
        outcome, torch.zeros(16), lengths, torch.zeros(16).long(), modes, scheme="reference"
    )
    assert advantages.rest[-1].item() == pytest.approx(-9.32, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_is_the_token_by_token_one(seed):
    generator = torch.Generator().manual_seed(seed)
    size = 24
    lengths = torch.randint(1, 9, (size,), generator=generator)
    groups = torch.randint(0, 3, (size,), generator=generator) * 1000 - 7
    modes = torch.randint(0, 2, (size,), generator=generator)
    correct = torch.randint(0, 2, (size,), generator=generator)
    outcome = 1.8 * correct + 0.1 * torch.rand(size, generator=generator)
    bonus = ak.efficiency_bonus(correct, groups, modes, gamma=0.3)
    advantages = ak.adapt_advantages(outcome, bonus, lengths, groups, modes, scheme="reference")
    expected = port(outcome.double().numpy(), bonus.double().numpy(), lengths, groups, modes)
    np.testing.assert_allclose(advantages.expand(8).numpy(), expected, atol=2e-6)


def test_the_bonus_by_hand():
    correct = torch.tensor([1, 1, 0, 0, 1, 0, 1, 1])
    modes = torch.tensor([0, 0, 0, 0, 1, 1, 1, -1])
    f, s = 2 / 4, 2 / 3
    bonus = ak.efficiency_bonus(correct, torch.full((8,), 5), modes, gamma=0.4)
    wanted = -(0.5 * (f - 0.4) + 0.5 * (f - s))
    np.testing.assert_allclose(bonus.numpy(), [0, 0, 0, 0, wanted, wanted, wanted, 0], atol=1e-7)
    for value, fast, slow in ((-0.75, 1, 0), (0.75, 0, 1)):
        got = ak.efficiency_bonus(torch.tensor([fast, slow]), torch.zeros(2).long(), torch.tensor([0, 1]))
        assert got[1].item() == value
    alone = ak.efficiency_bonus(torch.tensor([True, False]), torch.zeros(2).long(), torch.tensor([1, 1]))
    assert alone.tolist() == [0.5, 0.5]


def test_the_separate_scheme_by_hand():
    outcome, bonus = torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.25, 0.25, 0, 0])
    got = ak.adapt_advantages(outcome, bonus, torch.tensor([4, 3, 2, 2]), torch.zeros(4).long(), GROUP["modes"])
    np.testing.assert_allclose(got.mode.numpy(), np.array([1, 1, -1, -1]) * 0.125 / (0.125 + 1e-6), rtol=1e-6)
    assert got.rest.tolist() == [0.5, -0.5, 0.5, -0.5]
    lengths = torch.ones(3).long()
    mixed = ak.adapt_advantages(
        torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), lengths, torch.tensor([3, 3, 9]), torch.tensor([0, 1, 0])
    )
    assert mixed.mode.tolist() == mixed.rest.tolist() == [0, 0, 0], "one of a kind has nothing to be better than"


def test_rewards_that_hardly_differ_keep_their_digits():
    outcome = torch.tensor([1e4, 1e4 + 1e-3, 1e4, 1e4 + 1e-3], dtype=torch.float64)
    ones = torch.ones(4).long()
    got = ak.adapt_advantages(outcome, torch.zeros(4), ones, ones, torch.zeros(4).long(), scheme="reference")
    np.testing.assert_allclose(got.rest.numpy(), np.array([-1, 1, -1, 1]) * 5e-4 / (5e-4 + 1e-6), rtol=1e-5)


def test_empty_batches():
    none = torch.zeros(0, dtype=torch.int64)
    assert ak.efficiency_bonus(none, none, none).shape == (0,)
    for scheme in ("separate", "reference"):
        assert ak.adapt_advantages(none, none, none, none, none, scheme=scheme).expand(3).shape == (0, 3)


BAD = [
    ({"scheme": "pooled"}, ValueError, "scheme must be one of 'separate', 'reference'; got 'pooled'"),
    ({"outcome": torch.zeros(2, 2)}, ValueError, r"outcome must be \[B\]"),
    ({"lengths": torch.tensor([1, 0, 1, 1])}, ValueError, "lengths must be at least 1"),
    ({"lengths": torch.ones(3)}, ValueError, r"lengths must be \[B\] = \(4,\)"),
    ({"groups": torch.zeros(4)}, TypeError, "groups must hold integers; got torch.float32"),
    ({"modes": torch.zeros(3).long()}, ValueError, "modes must be"),
    ({"mode_bonus": torch.zeros(1)}, ValueError, "mode_bonus must be"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input(change, error, text):
    with pytest.raises(error, match=text):
        ak.adapt_advantages(**{**GROUP, "mode_bonus": torch.zeros(4), **change})
