"""The golden traces of programs, exactly: ids and how each came to be."""

import math

import pytest
import torch
from scripted import play
from toy_tokenizer import TRACE_TOKENIZER

from adapt_kernels.ops.mode_sample import mode_sample
from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun

THINK = {"think": {"open": 1, "close": 2, "breaks": 7}}
PAIR = {"think": {"open": 1, "close": {"seq": [[2, 15]]}, "breaks": 7}}


def program(*rules, spans=THINK):
    return Program.from_dict({"spans": spans, "rules": list(rules)}, TRACE_TOKENIZER)


def close_at(count, ids=(3, 2), **beside):
    return {"force": list(ids), "when": {"in": "think", "count": [count, None]}, **beside}


def s1(cap):
    again = {"force": [5], "when": {"in": "think", "drawn": 2, "times": 2}}
    return program(again, close_at(cap, (2,)))


AT_3 = program(close_at(3))
SETTLED_2 = program(close_at(3, (2,), settle={"on": [3, 4], "within": 2}))
SETTLED_4 = program(close_at(3, (2,), settle={"on": [3, 4], "within": 4}))
HALF = program(close_at(2, (9, 2, 15)), spans=PAIR)
NO_EOS = program(
    {"force": [3, 2], "when": {"in": "think", "drawn": 6}},
    {"bias": 6, "by": "ban", "when": {"after": 2}},
)
CGRS = program({"bias": 5, "by": "ban", "when": {"in": "think"}, "p": {"ramp": ["C", 0.9, 1.0]}})


def skip_or_think(bias, after):
    return program({"gate": {"skip": 2, "think": None}, "bias": {"skip": bias}, "when": {"after": after, "times": 1}})


TIP = program({"bias": 5, "by": -3, "when": {"in": "think", "after": [1, 5]}, "hold": 3})
DEER = program(
    {"probe": [3], "max": 20, "measure": "mean_prob", "into": "conf", "when": {"in": "think", "drawn": 5, "times": 10}},
    {"force": [3, 2], "when": {"in": "think", "drawn": 5, "if": {"conf": [0.95, None]}}},
)
ALPHA_ONE = program(
    {"bias": 5, "by": "only", "when": {"in": "think", "after": 4, "count": [2, 6]}, "p": 0.6},
    {"force": [2], "when": {"in": "think", "drawn": 5, "count": [6, None]}},
)
TRACES = {
    "1": (AT_3, "8 9 8 . . 10 6", "8 9 8 [3] [2] 10 6", {}),
    "2": (AT_3, "8 9 4 . 10 6", "8 9 4 [2] 10 6", {}),
    "3": (AT_3, "8 9 2 10 10 10 6", "8 9 2 10 10 10 6", {}),
    "4": (program(close_at(0)), ". . 10 6", "[3] [2] 10 6", {}),
    "5": (program(close_at(2)), "1 8 9 . . 10 6", "1 8 9 [3] [2] 10 6", {"prompt": (9,)}),
    "6": (program(close_at(2)), "8 2 10 1 8 9 . . 10 6", "8 2 10 1 8 9 [3] [2] 10 6", {}),
    "7": (
        program({"force": [2], "when": {"in": "think", "total": [3, None]}}),
        "8 9 2 10 1 8 . 9 10 6",
        "8 9 2 10 1 8 [2] 9 10 6",
        {},
    ),
    "8": (AT_3, "8 7 9 9 9 9 11 10 6", "8 7 9 9 9 9 11 10 6", {}),
    "9": (HALF, "8 2 15 10 10 10 6", "8 2 15 10 10 10 6", {}),
    "10": (HALF, "8 2 8 . . . 10 6", "8 2 8 [9] [2] [15] 10 6", {}),
    "11": (SETTLED_2, "8 9 8 9 9 . 10 6", "8 9 8 9 9 [2] 10 6", {}),
    "12": (SETTLED_4, "8 9 8 4 . 10 6", "8 9 8 4 [2] 10 6", {}),
    "12 closed by the model": (SETTLED_4, "8 9 8 2 10 10 6", "8 9 8 2 10 10 6", {}),
    "13": (s1(6), "8 2 9 2 8 2 10 6", "8 5* 9 5* 8 2 10 6", {}),
    "14": (s1(4), "8 2 9 9 . 8 10 6", "8 5* 9 9 [2] 8 10 6", {}),
    "15": (NO_EOS, "8 6 . 6>10 6", "8 3* [2] 10~ 6", {}),
    "16": (
        CGRS,
        "8 4 5>9 5>9 4 5>9 2 6",
        "8 4 9~ 5 4~ 5 2 6",
        {"registers": {0: {"C": 0.0}, 2: {"C": 0.97}, 5: {"C": 0.85}}, "uniforms": {2: 0.5, 3: 0.8, 4: 0.1, 5: 0.1}},
    ),
    "17": (skip_or_think(1.5, 1), "1 8>2 9 6", "1 2 9 6", {"prompt": (9,)}),
    "18": (skip_or_think(0.5, [1, {"seq": [[1, 3]]}]), "8>2 9 2 6", "8 9 2 6", {"prompt": (9, 1, 3)}),
    "19": (
        program(
            {"bias": 5, "by": "ban", "when": {"in": "think"}},
            {"bias": 2, "by": "ban", "when": {"in": "think", "count": [0, 3]}},
        ),
        "5>8 2>9 2>8 2>9 5 6",
        "8~ 9~ 8~ 2~ 5 6",
        {},
    ),
    "20": (TIP, "5>8 5>8 9 5>8 5>8 9 5>9 5>9 2 6", "8~ 8~ 9~ 5 8~ 9~ 9~ 5 2~ 6", {}),
    "21": (DEER, "8 5 9 4 5 10 6", "8 5 9 4 2* 10 6", {"probed": {1: 0.91, 4: 0.97}}),
    "22": (
        program({"force": [13, 14], "when": {"in": "think", "every": 3, "times": 2}}),
        "8 9 8 . . 9 9 9 . . 2 10 6",
        "8 9 8 [13] [14] 9 9 9 [13] [14] 2 10 6",
        {},
    ),
    "23": (program({"force": [9, 10], "when": {"after": 13}}), "13 . . 8 6", "13 [9] [10] 8 6", {"prompt": (8,)}),
    "24": (
        program({"force": [2], "when": {"in": "think", "left": [None, 4]}}),
        "8 8 8 8 . 8 10",
        "8 8 8 8 [2] 8 10",
        {"max_new": 7},
    ),
    "25": (program({"force": [], "stop": True, "when": {"in": "think", "entry": 2}}), "8 2 9 1 8", "8 2 9 1", {}),
    "26": (
        ALPHA_ONE,
        "8 4 9>5 9 4 9>5 9 5>8 10 6",
        "8 4 5~ 9 4 9 9 2* 10 6",
        {"uniforms": {2: 0.3, 5: 0.7}},
    ),
    "27": (
        program(
            {"gate": {"fast": 2, "slow": None}, "bias": {"fast": 9}, "when": {"at": 0}},
            {"bias": 1, "by": "ban", "when": {"mode": "fast"}},
        ),
        "8>2 1>10 10 6",
        "2 10~ 10~ 6~",
        {"prompt": (9, 1)},
    ),
}


@pytest.mark.parametrize("number", TRACES)
def test_golden_trace(number, backend):
    rules, wishes, expected, given = TRACES[number]
    played = play(rules, wishes, **given, backend=backend)
    assert played.shown == expected
    assert played.ended == (number == "25")


def test_what_the_traces_record(backend):
    fired = {n: play(rules, wishes, **given, backend=backend) for n, (rules, wishes, _, given) in TRACES.items()}
    assert fired["1"].run.fired().tolist() == [[1]] and fired["3"].run.fired().tolist() == [[0]]
    assert fired["13"].run.fired().tolist() == [[2, 0]] and fired["14"].run.fired().tolist() == [[1, 1]]
    assert fired["17"].run.modes(0).tolist() == [0] and fired["18"].run.modes(0).tolist() == [1]
    assert fired["17"].run.fired().tolist() == [[1]]
    assert fired["1"].visits() == [("think", 0, 4, "rule")] and fired["3"].visits() == [("think", 0, 2, "model")]
    assert fired["5"].visits() == [("think", 1, 4, "rule")] and fired["8"].visits() == [("think", 0, 1, "break")]
    assert fired["9"].visits() == [("think", 0, 1, "model")] and fired["10"].visits() == [("think", 0, 4, "rule")]
    assert fired["6"].visits() == [("think", 0, 1, "model"), ("think", 4, 7, "rule")]
    assert fired["25"].visits() == [("think", 0, 1, "model"), ("think", 4, 4, "end")]
    assert fired["23"].run.never_armed() == [[]]
    unopened = play(AT_3, "8 9 8 10 6", prompt=(9,))
    assert unopened.run.never_armed() == [["rules[0] (force)"]] and unopened.visits() == []


@pytest.mark.parametrize(("renormalise", "expected"), [(False, 1.0), (True, 2 - (math.log2(3) - 1))])
def test_golden_trace_28_mirostat(renormalise, expected, backend):
    """p = 1/2 1/4 1/8 1/8, tau 1, eta 1: mu 2 keeps ids 0 and 1, u = .7 draws 1, and mu follows its surprise."""
    rule = {"sample": {"surprise": 1.0, "rate": 1.0, "renormalise": renormalise}, "when": {}}
    run = ProgramRun([program(rule)], vocab_size=4 + 12, max_new_tokens=8, seeds=torch.tensor([3]), backend=backend)
    run.begin([[9]])
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125] + [0.0] * 12]).log()
    call = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

    def kept(decision):
        return mode_sample(
            logits, seeds=1, backend="reference", **run.settings(decision, call, top1=torch.tensor([0.5]))
        )

    decision = run.decide()
    assert kept(decision).kept.tolist() == [2]
    drawn = mode_sample(
        logits, seeds=1, forced_tokens=1, backend="reference", **run.settings(decision, call, top1=torch.tensor([0.5]))
    )
    surprise = -(drawn.logprobs if renormalise else drawn.raw_logprobs) / math.log(2)
    run.settle(decision, torch.tensor([1]), surprise)
    [column] = run.compiled.surprise.values()
    assert run.state.registers[0, column].item() == pytest.approx(expected, abs=1e-6)  # float32
    run.advance(torch.tensor([1]))
    assert kept(run.decide()).kept.tolist() == [1]
