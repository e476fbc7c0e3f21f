"""Every row of the table: worked examples to six decimals, plain float64 loops on random groups, what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_baselines import advantages
from plain_rewards import REWARDS

from adapt_kernels import schemes
from adapt_kernels.schemes import SCHEMES, SIGNALS, Rollouts, Schedule, SchemeSettings
from adapt_kernels.schemes.goldens import GOLDENS
from adapt_kernels.schemes.groups import Groups, thirds

EXAMPLES = [(name, golden) for name, goldens in GOLDENS.items() for golden in goldens]


@pytest.mark.parametrize(("name", "golden"), EXAMPLES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(EXAMPLES)])
def test_worked_examples(name, golden):
    def calls(function):
        return function(name, golden.rollouts, golden.scheme_settings, golden.new_state)

    def same(found, listed):
        assert found[: len(listed)].tolist() == pytest.approx(listed, abs=1e-6)

    assert golden.rewards
    same(calls(schemes.rewards), golden.rewards)
    found = calls(schemes.advantages)
    same(found.rest, golden.advantages)
    same(found.mode, golden.mode_advantages or (golden.advantages if not golden.tokens else ()))
    if golden.tokens:
        same(found.expand(len(golden.tokens))[0], golden.tokens)


def test_every_scheme_has_an_example_a_source_and_known_signals():
    assert GOLDENS.keys() == SCHEMES.keys()
    for name, row in SCHEMES.items():
        assert row.source and row.reward.__doc__ and {*row.signals, *row.optional} <= SIGNALS.keys(), name
        assert all(hasattr(SchemeSettings(), constant) for constant in row.constants), name


LENGTHS = torch.tensor([1, 40, 41, 300, 512, 900, 1024, 3000, 3500, 4096, 5000])
KINDS = ["mixed", "all right", "all wrong", "one length"]


def batch(name, kind, seed, size=4, groups=5, scrambled=True):
    """Random rows: ties, malformed rows, a prompt with a single answer; in any order."""
    generator = torch.Generator().manual_seed(seed)
    rows = size * groups + 1

    def drawn(high, low=0):
        return torch.randint(low, high, (rows,), generator=generator)

    correct = drawn(2).bool() if kind == "mixed" else torch.full((rows,), kind != "all wrong")
    modes = 4 if name == "hbpo" else 2
    signals = {signal: drawn(9).double() / 8 for signal in SIGNALS}
    signals |= {"reflections": drawn(100).double(), "triggers": drawn(20).double(), "finished": drawn(2).double()}
    signals |= {"budget": 512.0 + 512 * drawn(3), "repetition": drawn(2) * 0.25}
    groups = torch.tensor([g * 7 - 3 for g in range(groups) for _ in range(size)] + [99])
    order = torch.randperm(rows, generator=generator) if scrambled else torch.arange(rows)
    lengths = LENGTHS[drawn(len(LENGTHS))] if kind != "one length" else torch.full((rows,), 100)
    return Rollouts(
        drawn(3).double() / 2, correct, lengths, groups[order], drawn(modes, -1), modes, 0.3, signals=signals, step=250
    )


def as_rows(rollouts):
    columns = {"outcome": rollouts.outcome, "correct": rollouts.correct.long(), "length": rollouts.lengths}
    columns |= {"group": rollouts.groups, "mode": rollouts.modes, **rollouts.signals}
    lists = {name: values.tolist() for name, values in columns.items()}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REWARDS)
def test_plain_loops(name, kind):
    """Three batches in a row, so that what is carried between them is compared too; rows of a group need not touch."""
    state, at = {}, {"progress": 0.3, "step": 250, "modes": 2, "memory": {}}
    again = {}
    for seed in range(3):
        rollouts = batch(name, kind, seed)
        expected = REWARDS[name](as_rows(rollouts), at)
        found = schemes.rewards(name, rollouts, state=state)
        # The first schemes take their penalties in float32, and stay so to the last bit.
        exact = 3e-8 if name in ("adacot", "adaptthink") else 1e-9
        assert found.dtype == torch.float64 and found.tolist() == pytest.approx(expected, abs=exact)
        credit = schemes.advantages(name, rollouts, state=again)
        assert credit.mode.isfinite().all() and credit.rest.isfinite().all()
        if name not in ("separate", "reference"):
            plain = advantages(name, as_rows(rollouts), expected)
            assert credit.rest.tolist() == pytest.approx(plain, rel=1e-5, abs=2e-6)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert bool(state) == SCHEMES[name].stateful


def test_state_is_remembered_as_long_as_published():
    """LASER's targets for 20 batches, TRAAC's lengths for 10: against loops that keep everything."""
    for name in ("laser_d", "traac"):
        state, at = {}, {"progress": 0.3, "step": 250, "modes": 2, "memory": {}}
        for seed in range(23):
            rollouts = batch(name, "mixed", seed)
            expected = REWARDS[name](as_rows(rollouts), at)
            assert schemes.rewards(name, rollouts, state=state).tolist() == pytest.approx(expected, abs=1e-9)
        assert len(state[{"laser_d": "laser_recent", "traac": "traac_recent"}[name]]) <= 21 * 20


def test_ares_weighs_the_kl_term_by_band():
    rollouts = batch("ares", "mixed", 0, size=8)
    del rollouts.signals["kl"]
    groups, state = Groups(rollouts), {}
    easy = groups.mean(rollouts.correct) >= 2 / 3
    weight = schemes.advantages("ares", rollouts, state=state).kl_weight
    relieved = easy & ~rollouts.correct
    assert relieved.any() and weight[relieved].tolist() == pytest.approx([0.67] * int(relieved.sum()))
    assert (weight[~relieved] == 1).all()
    far = rollouts._replace(signals={**rollouts.signals, "kl": torch.full_like(rollouts.outcome, 1.0)})
    near = rollouts._replace(signals={**rollouts.signals, "kl": torch.full_like(rollouts.outcome, 0.01)})
    band = int(thirds(rollouts)[0])
    for sample, average in ((far, 99.0), (near, 0.97 * 99)):  # of KL / target - 1
        schemes.advantages("ares", sample, state=state)
        assert state[f"ares_kl_{band}"].item() == pytest.approx(average, rel=1e-5)
    for _ in range(97):
        schemes.advantages("ares", far, state=state)
    assert not state["ares_log_beta"].any(), "the 100th batch moves it"
    schemes.advantages("ares", far, state=state)
    bands = thirds(rollouts).unique()
    assert state["ares_log_beta"][bands].tolist() == pytest.approx([0.05 * 0.2] * len(bands))


def test_placed_rewards_make_adapt_an_instance():
    """ADaPT as released: the outcome at the last token and the bonus at the first, over all tokens of the group."""
    from adapt_kernels.advantages import adapt_advantages, efficiency_bonus
    from adapt_kernels.schemes.baselines import centred_tokens, reward_to_go

    sample = batch("reference", "mixed", 3)
    sample = sample._replace(lengths=sample.lengths % 7 + 2)
    bonus = efficiency_bonus(sample.correct, sample.groups, sample.modes)
    rows = torch.arange(len(bonus))
    to_go = reward_to_go(sample.outcome, (rows, torch.zeros_like(rows), bonus), sample.lengths)
    tokens = centred_tokens(to_go, sample, "mean_std", 1e-6)
    whole = adapt_advantages(sample.outcome, bonus, sample.lengths, sample.groups, sample.modes, "reference")
    torch.testing.assert_close(tokens.float(), whole.expand(tokens.shape[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("baseline", schemes.BASELINES)
def test_baselines_of_tokens(baseline):
    lengths, groups = torch.tensor([3, 1, 2, 4]), torch.tensor([0, 0, 0, 5])
    steps = schemes.Steps(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 1, 1]), torch.tensor([0.0, 0.5, 0.25, 0.25]))
    outcome = torch.tensor([1.0, 0.0, 1.0, 1.0])
    sample = Rollouts(outcome, outcome.bool(), lengths, groups, torch.zeros(4).long(), 2, steps=steps)
    found = schemes.advantages("vsrm", sample, SchemeSettings(baseline=baseline)).expand(4)
    to_go = [[1.5, 1.0, 1.0], [0.0], [1.0, 1.0], [1.0] * 4]
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    for row, values in enumerate(to_go):
        own = [x for other, rest in enumerate(to_go) if groups[other] == groups[row] for x in rest]
        others = [x for i, rest in enumerate(to_go) if groups[i] == groups[row] and i != row for x in rest] or own
        mean = {"none": 0, "rloo": sum(others) / len(others)}.get(baseline, sum(own) / len(own))
        std = torch.tensor(own, dtype=torch.float64).std(unbiased=False) + 1e-6 if baseline == "mean_std" else 1
        wanted[row, : len(values)] = (torch.tensor(values, dtype=torch.float64) - mean) / std
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)


def test_segments_have_advantages_of_their_own():
    row = SCHEMES["hipo"]
    answer = schemes.Segment(lambda rollouts, settings, state: rollouts.lengths.double(), "mean")
    both = schemes.Scheme(row.reward, segments={**row.segments, "answer": answer})
    sample = GOLDENS["hipo"][0].rollouts._replace(
        lengths=torch.tensor([3, 4, 5, 4]), answer_start=torch.tensor([2, 9, 1, 3])
    )
    with pytest.raises(ValueError, match=r"needs Rollouts.answer_start"):
        both.advantages(sample._replace(answer_start=None))
    whole = both.advantages(sample).expand(5)
    assert whole[:, 0].tolist() == pytest.approx([0.25, 0.25, -0.25, -0.25])
    assert whole[0].tolist() == pytest.approx([0.25, 0.499999, -1, 0, 0], abs=1e-6), "from its start to its row's end"
    assert whole[1].tolist() == pytest.approx([0.25, *[0.499999] * 3, 0], abs=1e-6), "a thought that never closes"
    assert whole[2, 1:].tolist() == pytest.approx([1] * 4)


def test_overlong_is_added_to_any_scheme():
    sample = GOLDENS["grpo"][0].rollouts._replace(lengths=torch.tensor([6, 8, 9, 12]))
    settings = SchemeSettings(max_length=10, overlong_buffer=4, overlong_factor=2.0)
    for name, plain in (("grpo", [1, 0, 1, 0]), ("separate", [1, 0, 1, 0])):
        expected = [reward + late for reward, late in zip(plain, (0, -1, -1.5, -2), strict=True)]
        assert schemes.rewards(name, sample, settings).tolist() == pytest.approx(expected)
    shaped = schemes.advantages("separate", sample, settings).rest
    assert shaped.tolist() == pytest.approx([1.625, -0.375, 0.125, -1.375])

    step = schemes.Steps(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([0.0, 0.5]))
    found = schemes.advantages("vsrm", sample._replace(steps=step), replace(settings, baseline="none"))
    assert found.mode.tolist() == pytest.approx([1.5, -1, -0.5, -2])


def test_schedules():
    assert [Schedule(4.0, 2.0).at(p, 0) for p in (0, 0.5, 1)] == [4, 3, 2]
    assert [round(Schedule(4.0, 2.0, "cosine").at(p, 0), 6) for p in (0, 0.25, 0.5, 1)] == [4, 3.707107, 3, 2]
    budget = SchemeSettings().train_long_budget
    assert [round(budget.at(0, t), 6) for t in (0, 99, 100, 350, 10_000)] == [256, 256, 204.8, 131.072, 1]
    sample = GOLDENS["length_penalty"][0].rollouts._replace(progress=0.5)
    falling = SchemeSettings(length_penalty=Schedule(1.0, 0.0), length_scale=20.0)
    assert schemes.rewards("length_penalty", sample, falling).tolist() == pytest.approx([0.95, -0.05, 0.75, -0.25])


def test_a_scheme_is_added_as_contributing_shows(monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    code = re.search(r"## Adding a scheme.*?```python\n(.*?)```", text, re.S)[1]
    row, example = code.split("\n\n\n")
    assert len(row.splitlines()) <= 15
    monkeypatch.setattr("adapt_kernels.schemes.table.SCHEMES", listed := {})
    exec(code, {"scheme": schemes.scheme, "Golden": schemes.Golden, "GOLDENS": (examples := {})})
    assert example.startswith("GOLDENS")
    (name, found), ((golden,),) = *listed.items(), examples.values()
    assert examples.keys() == {name}
    assert found.rewards(golden.rollouts, golden.scheme_settings).tolist() == pytest.approx(golden.rewards, abs=1e-6)
    credit = found.advantages(golden.rollouts, golden.scheme_settings).rest
    assert credit.tolist() == pytest.approx(golden.advantages, abs=1e-6)
