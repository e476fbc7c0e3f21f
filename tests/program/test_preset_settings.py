"""Settings of a preset that are of a wrong type are refused by name, before anything is built."""

import inspect

import pytest
from test_presets import NEEDED, PIECED, TAGGED

from adapt_kernels.program.preset_settings import check_settings
from adapt_kernels.program.presets import PRESETS
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span

REFUSED = [
    ("budget", {"tokens": "x"}, "tokens must be an integer; got 'x'"),
    ("budget", {"tokens": 1.5}, "tokens must be an integer; got 1.5"),
    ("budget", {"tokens": True}, "tokens must be an integer; got True"),
    ("budget", {"tokens": None}, "tokens must be an integer; got None"),
    ("budget", {"tokens": 9, "soft": "a"}, "soft must be a finite number; got 'a'"),
    ("budget", {"tokens": 9, "soft": float("nan")}, "soft must be a finite number; got nan"),
    ("budget", {"tokens": 9, "soft": 10**400}, "soft must be a finite number; got 1000"),
    ("budget", {"tokens": 9, "closing": 3}, "closing must be a text or a list with a text or an integer each; got 3"),
    (
        "budget",
        {"tokens": 9, "think": {"open": 1, "close": 2}},
        "think must be an adapt_kernels.Span or None; got {",
    ),
    ("qwen3", {"tokens": [1]}, r"tokens must be an integer or an object; got \[1\]"),
    ("nowait", {"words": "wait"}, "words must be a list with a text each; got 'wait'"),
    ("nowait", {"words": [3]}, r"words must be a list with a text each; got \[3\]"),
    ("tip", {"penalty": "3"}, "penalty must be a finite number; got '3'"),
    ("diffadapt", {"tokens": 9, "classes": [(0.5,)]}, r"classes must be a list with \(a finite number, a finite numb"),
    ("diffadapt", {"tokens": 9, "classes": 3}, "classes must be a list with"),
    ("mirostat", {"version": "2"}, "version must be an integer; got '2'"),
    ("arm", {"bias": "much"}, "bias must be a finite number or an object; got 'much'"),
]


@pytest.mark.parametrize(("name", "settings", "text"), REFUSED)
def test_wrong_types_are_refused(name, settings, text):
    with pytest.raises(TypeError, match=f"preset '{name}': {text}"):
        Program.preset(name, TAGGED, **settings)


def test_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="preset 'budget': soft must be >= 0, a share of tokens; got -0.5"):
        Program.preset("budget", PIECED, tokens=9, soft=-0.5)
    with pytest.raises(ValueError, match=r"rules\[0\] \(force\) 'count' must be an integer >= 0; got -1"):
        Program.preset("qwen3", PIECED, tokens=-1)
    with pytest.raises(ValueError, match="preset 'mind': turns must be an integer >= 0; got -1"):
        Program.preset("mind", PIECED, turns=-1)
    with pytest.raises(ValueError, match="preset 'ds4': hard_tokens must be an integer >= 0; got -1"):
        Program.preset("ds4", TAGGED, tokens=9, hard_tokens=-1)
    with pytest.raises(ValueError, match=r"unknown preset \['budget'\]; there are"):
        Program.preset(["budget"], PIECED)
    with pytest.raises(TypeError, match="preset 'budget' needs a Hugging Face tokenizer; NoneType has no get_vocab"):
        Program.preset("budget", None, tokens=9)


@pytest.mark.parametrize("name", PRESETS)
def test_no_value_of_any_type_gets_a_bare_error(name):
    """What a setting cannot take is told by us: an error of Python names no preset."""
    for setting in [*inspect.signature(PRESETS[name]).parameters][1:]:
        for value in ("x", -3, 2.5, None, True, [], [None], {}, {"a": 1}, object(), b"x", float("inf")):
            try:
                Program.preset(name, TAGGED, **{**NEEDED.get(name, {}), setting: value})
            except (TypeError, ValueError) as error:
                told = (setting, "rules[", "preset", "span", "a program is JSON data")
                assert any(each in str(error) for each in told), (setting, value, error)


@pytest.mark.parametrize("name", PRESETS)
def test_defaults_fit(name):
    defaults = {p.name: p.default for p in inspect.signature(PRESETS[name]).parameters.values()}
    given = {n: value for n, value in defaults.items() if value is not inspect.Parameter.empty}
    check_settings(name, PRESETS[name], given)
    check_settings(name, PRESETS[name], NEEDED.get(name, {}))


def test_numbers_of_a_row_and_spans_are_taken():
    program = Program.preset("qwen3", TAGGED, tokens={"input": "cap"}, think=Span("<think>", "</think>"))
    assert program.inputs == ("cap",)
