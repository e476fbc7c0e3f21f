"""`ModeProcessor` under both interfaces of vLLM says what each request says alone, whatever the engine does."""

import random

import pytest
from alone import alone
from fake_engines import NewerEngine, OlderEngine, Request
from stand_ins import MoveDirectionality

from adapt_kernels.modes import Modes
from adapt_kernels.philox import row_seed
from adapt_kernels.program.program import Program
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import ROW_KEY

THINK = {"think": {"open": 6, "close": 8, "breaks": 9, "stops": "end"}}
PROGRAMS = {
    "sentence": {"spans": THINK, "rules": [{"force": [11, 12, 8], "when": {"in": "think", "count": [4, None]}}]},
    "bans": {
        "spans": THINK,
        "rules": [
            {"bias": [13, 14, 15], "by": "ban", "when": {"in": "think"}},
            {"bias": [3, 4], "by": 2.5, "when": {"in": "!think"}, "p": 0.5},
            {"bias": 10, "by": {"scale": 0.5}},
            {"force": [20, 21], "when": {"after": {"seq": [[8]]}, "times": 1}},
        ],
    },
    "late gate": {
        "spans": THINK,
        "rules": [
            {"gate": {"short": 17, "long": {"seq": [[18, 19]]}}, "bias": 0.5, "when": {"after": 8, "times": 2}},
            {"bias": [1, 2, 3], "by": "only", "when": {"mode": "long", "after": 19}, "hold": 2},
        ],
    },
    "by mode": {"spans": THINK, "rules": [{"force": [22], "when": {"mode": "slow", "in": "think", "every": 3}}]},
}  # fmt: skip


def served(modes=None) -> Served:
    modes = modes or Modes(fast=5, slow=6)
    modes.spans = {"think": THINK["think"]}
    programs = {name: Program.from_dict(each) for name, each in PROGRAMS.items()}
    return Served(modes, programs, eos_ids=(2,))


MULTI = Modes(fast=(6, 7, 8, 7), slow=(6, 10))


def settings(dice: random.Random) -> dict | None:
    gate = [{}, {"mode": "fast"}, {"mode": "slow"}, {"mode": "auto"}, {"mode_bias": 1.5}, {"fast_prob": 0.5}]
    own = dict(dice.choice(gate))
    if dice.random() < 0.4:
        own["thinking_budget"] = dice.choice((0, 1, 3, 6))
    if dice.random() < 0.5:
        names = list(PROGRAMS) if own else [name for name in PROGRAMS if name != "by mode"]
        own["program"] = dice.choice([name for name in names if name != "by mode" or set(own) - {"thinking_budget"}])
    return own or None


def requests(seed: int, model: Served, count: int = 10) -> list[Request]:
    dice, found = random.Random(seed), []
    for number in range(count):
        own = settings(dice)
        prompt = [dice.choice((1, 10, 11, 6 if own and not {"mode", "mode_bias", "fast_prob"} & set(own) else 12))
                  for _ in range(dice.randint(1, 6))]  # fmt: skip
        each = Request(number, prompt, own, dice.randint(2, 16), dice.choice((0.0, 0.7)))
        each.expected = alone(each, model, row_seed(seed, number))
        if own is not None:
            each.extra = {**own, ROW_KEY: row_seed(seed, number), "of": "somebody else"}
        found.append(each)
    return found


def run(engine) -> None:
    steps = 0
    while not engine.finished():
        engine.step()
        steps += 1
        assert steps < 2000, "the engine does not come to an end"


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 8))]
MODELS = {"one token": served, "several tokens": lambda: served(MULTI)}


@pytest.mark.parametrize("modes", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_older_runner_says_what_each_request_says_alone(processor, engine_config, modes, seed):
    model = MODELS[modes]()
    asked = requests(seed, model)
    engine = OlderEngine(processor.ModeProcessor, engine_config(model), asked, seed, directions=MoveDirectionality)
    run(engine)
    assert engine.preemptions
    for each in asked:
        assert each.generated == each.expected, (each.number, each.extra)


@pytest.mark.parametrize("modes", MODELS)
@pytest.mark.parametrize(("drafts", "shows"), [(0, True), (0, False), (3, True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_newer_runner_says_what_each_request_says_alone(processor, engine_config, modes, drafts, shows, seed):
    model = MODELS[modes]()
    asked = requests(seed, model)
    config = engine_config(model, drafts)
    engine = NewerEngine(processor.ModeProcessor, config, asked, seed, drafts=drafts, shows=shows)
    run(engine)
    assert engine.preemptions and (engine.accepted > 0) == (drafts > 0)
    for each in asked:
        assert each.generated == each.expected, (each.number, each.extra)
