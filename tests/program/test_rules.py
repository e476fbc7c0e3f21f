"""Programs as data: what is kept, what is refused and with which words."""

import json
import re

import pytest
from refused_rules import REFUSED
from toy_tokenizer import TRACE_TOKENIZER, ToyTokenizer

from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span
from adapt_kernels.program.tables import compile_programs

THINK = {"think": {"open": 1, "close": 2}}
CLOSE = {"force": [2], "when": {"in": "think", "count": [4, None]}}
TEXTS = {
    "spans": {"think": {"open": "<think>", "close": "</think>", "breaks": "<tool_call>", "stops": "hold"}},
    "rules": [
        {
            "force": "\n</think>",
            "when": {"in": "think", "count": [1024, None]},
            "settle": {"on": {"ends": "\n"}, "within": 102},
        },
        {"force": "\n</think>", "when": {"in": "think", "left": [0, 512]}},
        {"force": "\n</think>", "when": {"in": "think", "drawn": "<eos>"}},
        {"bias": "<eos>", "by": "ban", "when": {"after": "</think>"}, "hold": 2},
    ],
}


def build(*rules, spans=THINK, tokenizer=TRACE_TOKENIZER):
    return Program.from_dict({"spans": spans, "rules": list(rules)}, tokenizer)


def test_data_goes_round():
    program = Program.from_dict(TEXTS, TRACE_TOKENIZER)
    assert program.to_dict() == TEXTS and json.loads(json.dumps(program.to_dict())) == TEXTS
    assert Program.from_dict(program.to_dict(), TRACE_TOKENIZER) == program
    assert Program.from_dict({"rules": []}) != program and hash(program) == hash(
        Program.from_dict(TEXTS, TRACE_TOKENIZER)
    )
    assert program.rule_tokens[0].sequence == (3, 2)
    program.to_dict()["rules"].clear()
    assert len(program.rules) == len(program.to_dict()["rules"]) == 4


def test_files_hold_the_ids_too(tmp_path):
    program = Program.from_dict(TEXTS, TRACE_TOKENIZER)
    program.save_pretrained(tmp_path / "new")
    assert Program.from_pretrained(tmp_path / "new") == program
    assert Program.from_pretrained(tmp_path / "new", TRACE_TOKENIZER) == program
    other = ToyTokenizer(TRACE_TOKENIZER.pieces[::-1])
    assert Program.from_pretrained(tmp_path / "new", other).rule_tokens[3].ids == (9,)
    with pytest.raises(FileNotFoundError, match=r"no program.json in .*: write one with program.save_pretrained"):
        Program.from_pretrained(tmp_path)
    (tmp_path / "program.json").write_text('{"program": {}}')
    with pytest.raises(ValueError, match="does not hold a program as save_pretrained writes it"):
        Program.from_pretrained(tmp_path)


def test_spans_may_be_objects():
    program = Program.from_dict({"spans": {"think": Span(1, 2, stops="end")}, "rules": [CLOSE]})
    assert program.to_dict()["spans"] == {"think": {"open": 1, "close": 2, "stops": "end"}}
    assert program.spans["think"] == Span(1, 2, None, "end")


def test_the_report_of_building():
    words = ToyTokenizer(["wait", " Wait", "\n", ".\n", "<t>", "</t>"])
    program = Program.from_dict(
        {"rules": [{"bias": {"word": ["wait", "hmm"]}, "by": "ban", "when": {"after": {"ends": "\n"}}}]}, words
    )
    assert program.report() == {
        "sets": {"rules[0] (bias)": 2, "rules[0] (bias) 'after'": 2},
        "words_without_id": ["hmm"],
    }


def test_what_rows_must_bring():
    program = build(
        {"force": {"input": "thought"}, "when": {"at": 0}},
        {"force": [2], "when": {"in": "think", "count": [{"input": "budget"}, None], "if": {"difficulty": [2, None]}}},
        {"bias": 5, "by": "ban", "p": {"ramp": ["C", 0, 1]}},
        {"probe": [3], "max": 2, "measure": "certainty", "into": "C", "when": {"at": 3, "if": {"entropy": [1, None]}}},
    )
    assert program.inputs == ("difficulty", "budget", "thought") and program.probes == ("C",)
    assert list(program.signals) == ["entropy"]


def test_signals_name_what_they_need():
    program = build(
        {
            "force": [2],
            "when": {"in": "think", "if": {"margin:</think>": [None, 1.0], "conf:20": {"range": [0, 1], "mean": 8}}},
        },
        {"bias": 2, "by": "only", "when": {"times": 1, "if": {"rank:2,6": [1, 4], "top1": [0, 1]}}},
    )
    needs = {name: (each.kind, each.ids, each.top) for name, each in program.signals.items()}
    assert needs == {
        "margin:</think>": ("margin", (2,), 0),
        "conf:20": ("conf", (), 20),
        "rank:2,6": ("rank", (2, 6), 0),
        "top1": ("top1", (), 0),
    }


GATE = {"gate": {"a": 2, "b": 5}, "when": {"at": 0}}


@pytest.mark.parametrize(("rule", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_rules_that_mean_nothing_are_refused(rule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(rule)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ([], "a program is an object with 'rules' and, optionally, 'spans'; got []"),
        ({"rule": []}, "got ['rule']"),
        ({"rules": {}}, "its 'rules' a list"),
        ({"rules": [], "spans": {"!a": {"open": 1, "close": 2}}}, "does not begin with '!'; got '!a'"),
        ({"rules": [], "spans": {"a": {"open": 1}}}, "spans['a']: a span needs 'close'"),
        ({"rules": [], "spans": {"a": {"open": 1, "close": 2, "end": 3}}}, "spans['a']: unknown key 'end'"),
        (
            {"rules": [], "spans": {"a": {"open": 1, "close": 2, "stops": "yes"}}},
            "stops must be one of 'hold', 'end'; got 'yes'",
        ),
        (
            {"rules": [], "spans": {"a": {"open": "<th", "close": 2}}},
            "spans['a'] 'open': this tokenizer has no tokens for '<th'",
        ),
    ],
)
def test_programs_that_mean_nothing_are_refused(definition, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Program.from_dict(definition, TRACE_TOKENIZER)


LOOPS = [
    {"force": [9], "when": {"in": "think"}},
    {"force": [9, 3], "when": {"in": "think", "count": [4, None]}},
    {"force": [2], "when": {"in": "!think"}},
    {"force": [2], "when": {"left": [0, 8]}},
    {"force": [9]},
    {"force": [9], "when": {"in": "think"}, "p": 0.5},
    {"force": [9], "when": {"in": "think"}, "settle": {"on": 3, "within": 4}},
    {"force": {"input": "ids"}, "when": {"in": "think"}},
    {"force": [9], "when": {"if": {"entropy": [2, None]}}},
]
ENDS = [
    CLOSE,
    {"force": [1], "when": {"in": "!think", "count": [2, None]}},
    {"force": [9], "when": {"in": "think", "every": 4}},
    {"force": [9], "when": {"in": "think", "count": 4}},
    {"force": [9], "when": {"at": [0, 3]}},
    {"force": [9], "when": {"after": 3}},
    {"force": [9], "when": {"drawn": 3}},
    {"force": [9], "when": {"times": 3}},
    {"force": [9], "stop": True},
]


@pytest.mark.parametrize("rule", LOOPS, ids=str)
def test_a_force_that_would_start_for_ever_is_refused(rule):
    with pytest.raises(
        ValueError, match=r"rules\[0\] \(force\) would start again for ever: .* Add 'times': 1, or force"
    ):
        build(rule)


@pytest.mark.parametrize("rule", ENDS, ids=str)
def test_a_force_that_ends_is_not(rule):
    build(rule)


@pytest.mark.parametrize(
    "ban",
    [{}, {"when": {"at": [0, 4]}}, {"when": {"in": "think"}}, {"when": {"left": [1, None]}}, {"when": {"count": 0}}],
)
def test_a_gate_whose_ids_are_all_banned_is_refused(ban):
    with pytest.raises(ValueError, match=r"rules\[0\] \(gate\): every mode is banned, \{'a': 2, 'b': 5\}: leave one"):
        build(GATE, {"bias": 2, "by": "ban"} | ban, {"bias": [5, 6], "by": "ban"} | ban)


@pytest.mark.parametrize("ban", [{"when": {"at": [1, None]}}, {"when": {"mode": "a"}}, {"when": {"after": 9}}])
def test_bans_away_from_the_gate_are_not(ban):
    build(GATE, {"bias": [2, 5], "by": "ban"} | ban)
    build({**GATE, "gate": {"a": 2, "b": None}}, {"bias": [2, 5], "by": "ban"})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"bias": 16, "by": "ban"}], "rules[0] (bias): token id 16 is outside the vocabulary of 16 tokens"),
        ([{"force": [2, 99], "when": {"at": 0}}], "rules[0] (force): token id 99 is outside the vocabulary"),
        ([CLOSE, {"gate": {"a": 2, "b": 20}}], "rules[1] (gate): token id 20 is outside the vocabulary"),
        ([{"bias": 5, "by": "ban", "when": {"after": {"seq": [[1, 50]]}}}], "rules[0] (bias): token id 50 is outside"),
        ([{"bias": 5, "by": "ban", "when": {"if": {"rank:77": [1, 2]}}}], "signal 'rank:77': token id 77 is outside"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_programs([Program.from_dict({"spans": THINK, "rules": rules})], 16)


def test_modes_are_those_of_the_gates_or_of_the_caller():
    program = build(GATE, {"bias": 5, "by": "ban", "when": {"mode": "fast"}})
    with pytest.raises(
        ValueError, match=re.escape("rules[1] (bias): no gate has the mode 'fast'; the modes are 'a', 'b'")
    ):
        compile_programs([program], 16)
    assert compile_programs([program], 16, outer_modes=("slow", "fast")).outer_mode is not None


def test_a_row_may_not_be_stopped_before_min_new_tokens():
    stop = {"force": [], "stop": True, "when": {"in": "think", "entry": 2}}
    with pytest.raises(
        ValueError, match=r"rules\[0\] \(force\) stops the row .* before min_new_tokens=4: add 'at': \[4, null\]"
    ):
        build(stop).check_call(min_new_tokens=4)
    build(stop).check_call(min_new_tokens=0)
    build({**stop, "when": {"at": [4, None]}}).check_call(min_new_tokens=4)
    build({**stop, "when": {"in": "think", "count": [4, None]}}).check_call(min_new_tokens=4)
