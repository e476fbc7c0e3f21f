"""What schemes refuse, by text: settings, columns and signals of other kinds, lengths or ranges."""

import pytest
import torch

from adapt_kernels import schemes
from adapt_kernels.schemes import SIGNALS, Rollouts, Schedule, SchemeSettings


def steps(rows, positions):
    return schemes.Steps(torch.tensor(rows), torch.tensor(positions), torch.full((len(rows),), 0.5))


GENERATOR = torch.Generator().manual_seed(0)
SAMPLE = Rollouts(
    torch.rand(21, generator=GENERATOR).double(),
    torch.rand(21, generator=GENERATOR) < 0.5,
    torch.randint(1, 100, (21,), generator=GENERATOR),
    torch.arange(21) // 4,
    torch.randint(-1, 2, (21,), generator=GENERATOR),
    2,
    0.3,
    signals={name: torch.ones(21) for name in SIGNALS},
    step=250,
)
HALF = {"entropy_think": torch.ones(3), "entropy_answer": torch.ones(3)}
REFUSED = [
    ("avrr", {}, {}, "scheme must be one of 'separate', 'reference'.*got 'avrr'"),
    ("pear", {"signals": None}, {}, "scheme 'pear' needs entropy_think, the mean token entropy of the thought"),
    ("pear", {"signals": HALF}, {}, r"entropy_think must be \[B\], one entry for each of 21 rows; got shape \(3,\)"),
    ("apriel", {"signals": {"finished": torch.full((21,), torch.nan)}}, {}, r"needs finished of every row.*\[0, 1, 2"),
    ("degrpo", {"num_modes": 3}, {}, "scheme 'degrpo' is defined for 2 modes; got 3"),
    (
        "hbpo",
        {"num_modes": 2, "signals": {}},
        {},
        "needs an entry of hbpo_budgets for each of the 2 modes, or the signal",
    ),
    ("separate", {}, {"baseline": "rloo"}, "scheme 'separate' has a baseline of its own: leave baseline='rloo' out"),
    ("vsrm", {}, {}, "scheme 'vsrm' needs Rollouts.steps"),
    ("vsrm", {"steps": steps([21], [0])}, {}, r"steps must be of rows 0 to 20.*got \[21, 0, 0.5\] at 0"),
    ("vsrm", {"steps": steps([0, 1], [0, -1])}, {}, r"got \[1, -1, 0.5\] at 1"),
    ("vsrm", {"steps": steps([0], [0, 1])}, {}, r"rows, positions and accuracies, \[K\] each; got shapes"),
    (
        "grpo",
        {"lengths": torch.ones(3).long()},
        {},
        r"lengths must be \[B\], one entry for each of 21 rows; got.*\(3,\)",
    ),
    ("grpo", {"lengths": torch.zeros(21).long()}, {}, "lengths must be at least 1"),
    ("grpo", {"modes": torch.full((21,), 2)}, {}, r"modes must be 0 to 1 \(num_modes - 1\), or -1.*got 2 to 2"),
    ("grpo", {"modes": torch.full((21,), -2)}, {}, "got -2 to -2"),
    ("grpo", {"outcome": torch.tensor([torch.nan, *[1.0] * 20])}, {}, r"need outcome of every row.*for rows \[0\]"),
    ("adaptthink", {"signals": {"reference_accuracy": torch.full((21,), torch.nan)}}, {}, "not finite for rows"),
    ("grpo", {"correct": torch.full((21,), 0.5)}, {}, "correct must be bool, or 1 for a right answer"),
    ("grpo", {"progress": 1.5}, {}, r"progress must be in \[0, 1\], the share of the training done; got 1.5"),
    ("grpo", {"step": -1}, {}, "step must be at least 0; got -1"),
    ("grpo", {"num_modes": 0}, {}, "num_modes must be at least 1; got 0"),
]
KINDS = [
    (["grpo"], {}, {}, {}, r"scheme must be one of .*got \['grpo'\]"),
    ("grpo", {"outcome": [1.0]}, {}, {}, r"outcome must be a tensor \[B\]; got \[1.0\]"),
    ("grpo", {"lengths": [1] * 21}, {}, {}, r"lengths must be a tensor \[B\] = \(21,\); got list"),
    ("grpo", {"lengths": torch.ones(21)}, {}, {}, "lengths must hold integers; got torch.float32"),
    ("grpo", {"groups": torch.full((21,), torch.nan)}, {}, {}, "groups must hold integers"),
    ("grpo", {"modes": torch.ones(21).bool()}, {}, {}, "modes must hold integers; got torch.bool"),
    ("grpo", {"num_modes": "2"}, {}, {}, "num_modes must be a number; got '2'"),
    ("grpo", {"progress": None}, {}, {}, "progress must be a number; got None"),
    ("fapo", {"signals": [1]}, {}, {}, r"signals must be a mapping \{name: \[B\]\}; got list"),
    ("fapo", {"signals": {"flawed": [0.0] * 21}}, {}, {}, r"flawed must be a tensor \[B\] = \(21,\); got list"),
    ("vsrm", {"steps": ([0], [0], [0.5])}, {}, {}, "scheme 'vsrm' needs Rollouts.steps, a Steps .*got tuple"),
    ("vsrm", {"steps": schemes.Steps(torch.ones(1), torch.ones(1), torch.ones(1))}, {}, {}, "steps.rows must hold int"),
    ("grpo", {}, {"gamma": 0.5}, {}, "settings must be a SchemeSettings, or None; got dict"),
    ("traac", {}, None, [1.0], "state must be a MutableMapping, or None; got list"),
    (
        "traac",
        {},
        None,
        {"traac_recent": 3},
        "state must hold tensors, as a former call left them; got traac_recent = 3",
    ),
]


@pytest.mark.parametrize(("name", "change", "settings", "text"), REFUSED)
def test_what_is_refused(name, change, settings, text):
    for function in (schemes.rewards, schemes.advantages):
        with pytest.raises(ValueError, match=text):
            function(name, SAMPLE._replace(**change), SchemeSettings(**settings))


@pytest.mark.parametrize(("name", "change", "settings", "state", "text"), KINDS)
def test_kinds_that_are_refused(name, change, settings, state, text):
    for function in (schemes.rewards, schemes.advantages):
        with pytest.raises((TypeError, ValueError), match=text):
            function(name, SAMPLE._replace(**change), settings or None, state)
    with pytest.raises(TypeError, match="rollouts must be a Rollouts; got dict"):
        schemes.rewards("grpo", SAMPLE._asdict())


@pytest.mark.parametrize("name", [name for name in schemes.SCHEMES if name not in ("hbpo", "vsrm")])
def test_columns_of_other_types_earn_the_same(name):
    """`generate` gives modes as int8; verdicts may be 0 and 1."""
    other = SAMPLE._replace(
        modes=SAMPLE.modes.to(torch.int8), lengths=SAMPLE.lengths.to(torch.uint8), groups=SAMPLE.groups.int(),
        correct=SAMPLE.correct.float(), num_modes=2.0,
    )  # fmt: skip
    same, found = (schemes.advantages(name, sample) for sample in (SAMPLE, other))
    assert torch.equal(same.mode, found.mode) and torch.equal(same.rest, found.rest)


BAD_SETTINGS = [
    ({"gamma": "0.5"}, "gamma must be a number; got '0.5'"),
    ({"gamma": True}, "gamma must be a number; got True"),
    ({"kimi_weight": 10**400}, "kimi_weight must be finite; got 1000"),
    ({"avr_length": torch.tensor(3.0)}, "avr_length must be a number; got tensor"),
    ({"laser_every": 1.5}, "laser_every must be a whole number; got 1.5"),
    ({"hbpo_budgets": 512}, "hbpo_budgets must be a tuple of numbers; got 512"),
    ({"avr_bonus": (1.0, None, 1.0)}, "avr_bonus must be a number; got None"),
    ({"avr_bonus": (1.0,)}, r"avr_bonus must be three entries, for AVR's three modes; got \(1.0,\)"),
    ({"degrpo_rewards": Schedule(0.0, 1.0)}, "degrpo_rewards must not be a Schedule, which moves one number"),
    ({"reference_form": "yes"}, "reference_form must be True or False; got 'yes'"),
    ({"baseline": ["mean"]}, r"baseline must be one of .*got \['mean'\]"),
    ({"max_length": 100, "overlong_buffer": Schedule(0, 101)}, "overlong_buffer must be at most max_length = 100"),
    ({"baseline": "median"}, "baseline must be one of 'mean_std', 'mean', 'rloo', 'none', or None.*got 'median'"),
    ({"laser_length": 0.0}, "laser_length must be above 0; got 0.0"),
    ({"hbpo_budgets": (512, 0)}, r"hbpo_budgets must be above 0; got \(512, 0\)"),
    ({"adathink_quantile": 1.5}, r"adathink_quantile must be in \[0, 1\]; got 1.5"),
    ({"crf_alpha": -0.1}, "crf_alpha must be at least 0; got -0.1"),
    ({"kimi_weight": float("nan")}, "kimi_weight must be finite; got nan"),
    ({"gamma": Schedule(0.5, 2.0)}, r"gamma must be in \[0, 1\]"),
    ({"arlcp_counts": (1,)}, "arlcp_weights must have one entry more than arlcp_counts"),
    ({"apriel_buffer": 5000}, r"apriel_buffer must be in \(0, max_length = 4096\]; got 5000"),
    ({"overlong_buffer": 5000}, "overlong_buffer must be at most max_length = 4096; got 5000"),
]


@pytest.mark.parametrize(("settings", "text"), BAD_SETTINGS)
def test_settings_out_of_range(settings, text):
    with pytest.raises((TypeError, ValueError), match=text):
        SchemeSettings(**settings)


def test_whole_numbers_and_lists():
    found = SchemeSettings(hbpo_budgets=[8, 16.0], max_length=64.0, overlong_buffer=Schedule(0, 5))
    assert (found.hbpo_budgets, found.max_length, found.at(0.5, 0).overlong_buffer) == ((8, 16), 64, 2)
    assert type(found.max_length) is int


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shape": "square"}, "shape must be one of 'linear', 'cosine', 'steps'; got 'square'"),
        ({"start": "1"}, "start must be a number; got '1'"),
        ({"end": float("nan")}, "end must be finite; got nan"),
        ({"every": 0}, "every must be at least 1 step; got 0"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\]; got 0.0"),
        ({"shape": "steps", "end": 3.0}, "end must be at most start"),
    ],
)
def test_schedules_out_of_range(settings, text):
    with pytest.raises((TypeError, ValueError), match=text):
        Schedule(**{"start": 1.0, **settings})
