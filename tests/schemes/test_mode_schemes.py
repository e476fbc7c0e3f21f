"""Advantages of the published methods on groups small enough for pencil and paper."""

import math

import pytest
import torch

from adapt_kernels.schemes import SCHEMES, SIGNALS, Rollouts, SchemeSettings, Steps

FAST_FAST_SLOW_SLOW = torch.tensor([0, 0, 1, 1])


def rollouts(correct, modes=FAST_FAST_SLOW_SLOW, lengths=(2, 2, 10, 10), **others):
    correct = torch.tensor(correct)
    given = {"groups": torch.zeros(len(correct)).long(), "num_modes": 2, **others}
    return Rollouts(correct.float(), correct.bool(), torch.tensor(lengths), modes=torch.as_tensor(modes), **given)


def complete(sample):
    """With every signal, and two measurements along each thought."""
    rows = torch.arange(len(sample.correct))
    signals = dict.fromkeys(SIGNALS, rows % 3 / 2.0)
    steps = Steps(rows.repeat(2), torch.zeros_like(rows.repeat(2)), torch.cat([rows * 0.0, (rows % 2) / 2]))
    return sample._replace(signals=signals, steps=steps)


def credit(scheme, sample, **settings):
    found = SCHEMES[scheme].advantages(sample, SchemeSettings(**settings))
    return found.mode.tolist(), found.rest.tolist()


def both(values):
    return pytest.approx(values, abs=1e-5), pytest.approx(values, abs=1e-5)


def normal(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return [(v - mean) / std for v in values]


def test_degrpo_pays_less_for_a_correct_slow_answer():
    assert credit("degrpo", rollouts([1, 0, 1, 0])) == both([1.125, -0.875, 0.625, -0.875])


def test_adaptthink_compares_with_the_model_before():
    sample = rollouts([1, 0, 1, 0], reference_accuracy=torch.tensor([0.25] * 4))
    assert credit("adaptthink", sample, adaptthink_delta=0.1) == both([0.85, -0.15, 0.75, -0.25])
    with pytest.raises(ValueError, match="scheme 'adaptthink' needs reference_accuracy, the accuracy before training"):
        credit("adaptthink", rollouts([1, 0, 1, 0]))
    sample = rollouts([1, 0, 1, 0], signals={"reference_accuracy": torch.tensor([0.25] * 4)})
    assert credit("adaptthink", sample, adaptthink_delta=0.1) == both([0.85, -0.15, 0.75, -0.25])


def test_adacot_punishes_missed_and_needless_reasoning():
    needed = credit("adacot", rollouts([0, 0, 1, 1]), adacot_missed=0.5)
    assert needed == both(normal([-0.5, -0.5, 1, 1]))
    needless = credit("adacot", rollouts([1, 1, 1, 0]), adacot_over=0.25)
    assert needless == both(normal([1, 1, 0.75, -0.25]))


def test_ada_grpo_pays_more_for_rare_modes_and_less_and_less():
    rare = rollouts([1, 1, 0, 1], modes=[0, 1, 1, 1])
    assert credit("ada_grpo", rare) == both(normal([4, 4 / 3, 0, 4 / 3]))
    assert credit("ada_grpo", rare._replace(progress=1.0)) == both(normal([1, 1, 0, 1]))


def test_malformed_rows_have_no_mode():
    """They count for no share and are neither fast nor slow; AVR's earn -1, and a single valid row is not rare."""
    sample = rollouts([1, 1, 0, 1], modes=[0, 1, -1, -1])
    assert credit("ada_grpo", sample) == both(normal([2, 2, 0, 1]))
    assert credit("adacot", sample) == both(normal([1, 0.7, 0, 1]))
    assert credit("avr", sample) == both(normal([1.75, 1.25, -1, -1]))
    assert credit("avr", sample._replace(modes=torch.tensor([0, -1, -1, -1]))) == both(normal([1.5, -1, -1, -1]))


def test_avr():
    sample = rollouts([1, 0, 1, 0], modes=[0, 1, 2, 2], lengths=(10, 10, 600, 3000), num_modes=3)
    rarity = [0.75, 0.75, 0.5, 0.5]
    shaped = [1.5, -0.2, 1.0 * 0.5, 0.0]
    assert credit("avr", sample) == both(normal([s + 0.5 * r for s, r in zip(shaped, rarity, strict=True)]))
    assert credit("avr", sample._replace(progress=1.0)) == both(normal(shaped))
    two = rollouts([1, 0, 1, 0], progress=1.0)
    assert credit("avr", two) == both(normal([1.5, -0.5, 1.0, 0.0])), "two modes are AVR's first and last"
    long = rollouts([1, 0, 1, 0], modes=[1, 0, 0, 1], lengths=(600,) * 4, num_modes=3, progress=1.0)
    assert credit("avr", long) == both(normal([0.65, -0.5, 0.75, -0.2]))
    assert credit("avr", long, reference_form=True) == both(normal([0.65, -0.25, 0.75, -0.1])), "as released"


def test_length_penalty_and_grpo():
    sample = rollouts([1, 0, 1, 0])
    penalised = credit("length_penalty", sample, length_penalty=0.5, length_scale=20.0)
    assert penalised == both(normal([0.95, -0.05, 0.75, -0.25]))
    std = math.sqrt(1 / 3)
    assert credit("grpo", sample) == both([x / (std + 1e-4) for x in (0.5, -0.5, 0.5, -0.5)])


@pytest.mark.parametrize("scheme", [name for name, row in SCHEMES.items() if not row.stateful])
def test_groups_do_not_see_each_other_and_order_does_not_matter(scheme):
    generator = torch.Generator().manual_seed(0)
    size = 32
    sample = rollouts(
        torch.randint(0, 2, (size,), generator=generator).tolist(), torch.arange(size) % 2,
        torch.randint(1, 9, (size,), generator=generator).tolist(), groups=torch.arange(size) // 8 * 5 - 3,
        reference_accuracy=torch.rand(size, generator=generator),
        signals={name: torch.rand(size, generator=generator) for name in SIGNALS},
    )  # fmt: skip

    def chosen(rows):
        part = sample._replace(**{k: v[rows] for k, v in sample._asdict().items() if torch.is_tensor(v)})
        part = part._replace(signals={name: values[rows] for name, values in sample.signals.items()})
        measured = torch.arange(len(rows)).repeat_interleave(2)
        accuracies = torch.stack([torch.zeros(len(rows)), part.signals["effort"]], 1).flatten()
        return part._replace(steps=Steps(measured, torch.zeros_like(measured), accuracies))

    sample = chosen(torch.arange(size))
    mode, rest = map(torch.tensor, credit(scheme, sample))
    assert mode.isfinite().all() and mode.any() and rest.any()

    alone = credit(scheme, chosen(torch.arange(8, 16)))
    torch.testing.assert_close(torch.tensor(alone), torch.stack([mode, rest])[:, 8:16])
    order = torch.randperm(size, generator=generator)
    torch.testing.assert_close(torch.tensor(credit(scheme, chosen(order))), torch.stack([mode, rest])[:, order])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("correct", [[1] * 4, [0] * 4, [1], []])
def test_nothing_to_compare_gives_no_infinities(scheme, correct):
    count = len(correct)
    sample = rollouts(correct, FAST_FAST_SLOW_SLOW[:count], [3] * count, reference_accuracy=torch.full((count,), 0.5))
    found = SCHEMES[scheme].advantages(complete(sample), SchemeSettings())
    assert found.mode.isfinite().all() and found.rest.isfinite().all() and len(found.mode) == count


def test_settings_are_checked():
    for change, text in (
        ({"gamma": -0.1}, "gamma must be in"),
        ({"degrpo_rewards": (1.0,)}, "degrpo_rewards must be"),
        ({"avr_bonus": (1.0,)}, "three entries"),
        ({"degrpo_alpha": 0.0}, "degrpo_alpha must be above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            SchemeSettings(**change)
