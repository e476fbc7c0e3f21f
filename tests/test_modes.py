"""Mode and Modes: what they hold, what they refuse and with which words, saving, comparing."""

import copy
import json
import re

import pytest

import adapt_kernels as ak
from adapt_kernels import Mode, Modes


def test_names_and_token_ids_in_order():
    modes = Modes(fast=5, slow=6)
    assert (modes.names, modes.token_ids) == (("fast", "slow"), (5, 6))
    assert (modes.prefix, modes.suffixes) == ((), ((), ()))
    assert len(modes) == 2 and list(modes) == ["fast", "slow"]
    assert [modes.index(name) for name in modes] == [0, 1]


def test_a_value_may_be_id_tuple_mode_or_none():
    modes = Modes(a=5, b=(6, 7), c=Mode(8, max_new_tokens=3), d=None)
    assert modes.token_ids == (5, 6, 8, None)
    assert modes.suffixes == ((), (7,), (), ())
    assert (modes["c"].ids, modes["c"].max_new_tokens, modes["c"].kv_tokens) == ((8,), 3, None)
    assert modes["d"] == Mode(None)


def test_modes_may_come_from_a_mapping_with_any_name():
    assert Modes({"long cot": 5, "1st": 6}).names == ("long cot", "1st")
    assert Modes({"a": 1}, b=2).names == ("a", "b")


def test_ids_may_be_any_integers():
    numpy = pytest.importorskip("numpy")
    assert Modes(a=numpy.int64(5), b=[6, numpy.int32(7)]) == Modes(a=5, b=(6, 7))


def test_common_leading_ids_are_the_prefix_and_the_next_one_decides():
    modes = Modes(fast=(10, 11, 12, 11), slow=(10, 13), other=(10, 14, 1))
    assert modes.prefix == (10,)
    assert modes.token_ids == (11, 13, 14)
    assert modes.suffixes == ((12, 11), (), (1,))


def test_an_any_other_mode_takes_no_prefix():
    modes = Modes(fast=(10, 11), slow=None)
    assert (modes.prefix, modes.token_ids, modes.suffixes) == ((), (10, None), ((11,), ()))


def test_127_modes_are_allowed():
    assert len(Modes({f"m{i}": i for i in range(127)})) == 127


# name: (modes, error, words of its text)
BAD = {
    "no mode": ({}, ValueError, r"at least two.*got 0"),
    "one mode": ({"a": 1}, ValueError, r"at least two.*got 1"),
    "128 modes": ({f"m{i}": i for i in range(128)}, ValueError, r"at most 127.*got 128"),
    "equal ids": ({"a": 5, "b": 5}, ValueError, r"'a' and 'b'.*same ids \(5,\)"),
    "equal tuples": ({"a": (5, 6), "b": (5, 6)}, ValueError, r"'a' and 'b'.*same ids \(5, 6\)"),
    "equal, one wrapped": ({"a": 5, "b": Mode((5,))}, ValueError, r"'a' and 'b'.*same ids"),
    "equal ids, third differs": ({"a": 5, "b": 6, "c": 5}, ValueError, r"'a' and 'c'.*same ids"),
    "beginning of the other": ({"a": (5,), "b": (5, 6)}, ValueError, r"'a'.*\(5,\).*only the beginning of 'b'"),
    "two of three together": ({"a": (1, 2), "b": (1, 3), "c": (4, 2)}, ValueError, r"'a'.*'b'.*token 1 at position 0"),
    "shared id and any other": ({"a": (1, 2), "b": (1, 3), "c": None}, ValueError, r"'a'.*'b'.*no room for a common"),
    "two any others": ({"a": None, "b": None}, ValueError, r"only one mode.*any other.*a, b"),
    "text": ({"a": "<think>", "b": 5}, TypeError, r"'a'.*'<think>'.*Modes\.from_tokenizer"),
    "name auto": ({"auto": 1, "b": 2}, ValueError, r"name.*'auto'.*got 'auto'"),
    "name balanced": ({"a": 1, "balanced": 2}, ValueError, r"name.*'balanced'.*got 'balanced'"),
    "empty name": ({"": 1, "b": 2}, ValueError, r"name.*got ''"),
    "name is a number": ({1: 1, "b": 2}, ValueError, r"name.*got 1"),
    "negative id": ({"a": -1, "b": 2}, ValueError, r">= 0.*\(-1,\)"),
    "negative id inside": ({"a": (1, -2), "b": 2}, ValueError, r">= 0.*\(1, -2\)"),
    "no ids": ({"a": (), "b": 2}, ValueError, r"at least one.*\(\)"),
    "float id": ({"a": 1.0, "b": 2}, TypeError, r"int.*tuple.*None.*1\.0"),
    "float id inside": ({"a": (1, 2.0), "b": 2}, ValueError, r"token ids.*2\.0"),
    "bool id": ({"a": True, "b": 2}, TypeError, r"int.*True"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_modes_are_named(name):
    given, error, text = BAD[name]
    with pytest.raises(error, match=text):
        Modes(given)


@pytest.mark.parametrize("field", ["max_new_tokens", "kv_tokens"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "9", True])
def test_a_limit_is_a_positive_integer(field, value):
    with pytest.raises(ValueError, match=rf"Mode\.{field}.*>= 1 or None.*{re.escape(repr(value))}"):
        Mode(5, **{field: value})


BAD_CLOSINGS = {
    "no limit": ({"closing": 7}, ValueError, r"Mode\.closing is forced after max_new_tokens"),
    "empty": ({"closing": (), "max_new_tokens": 3}, ValueError, r"Mode\.closing.*at least one"),
    "negative": ({"closing": (7, -1), "max_new_tokens": 3}, ValueError, r"Mode\.closing.*>= 0.*\(7, -1\)"),
    "float": ({"closing": 7.0, "max_new_tokens": 3}, TypeError, r"Mode\.closing must be an int.*7\.0"),
    "bool": ({"closing": True, "max_new_tokens": 3}, TypeError, r"Mode\.closing must be an int.*True"),
    "inside the ids": ({"closing": 7, "max_new_tokens": 1}, ValueError, r"max_new_tokens=1.*own 2 ids.*at least 2"),
    "held by the ids": ({"closing": (5, 6), "max_new_tokens": 3}, ValueError, r"ids \(5, 6\) hold its closing"),
}


@pytest.mark.parametrize("name", BAD_CLOSINGS)
def test_bad_closings_are_named(name):
    given, error, text = BAD_CLOSINGS[name]
    with pytest.raises(error, match=text):
        Mode((5, 6), **given)


def test_a_closing_may_be_an_id_or_ids():
    assert Mode(5, max_new_tokens=3, closing=7).closing == (7,)
    assert Mode(5, max_new_tokens=3, closing=[7, 8]).closing == (7, 8)
    assert Mode(5, max_new_tokens=3).closing is None


def test_a_closing_in_text_must_be_resolved():
    with pytest.raises(TypeError, match=r"'a'.*'</think>'.*Modes\.from_tokenizer"):
        Modes(a=Mode(5, max_new_tokens=3, closing="</think>"), b=6)


def test_a_mode_cannot_be_changed():
    with pytest.raises(AttributeError):
        Mode(5).ids = 6


def test_unknown_name_lists_the_names():
    modes = Modes(fast=5, slow=6)
    for look_up in (modes.index, modes.__getitem__):
        with pytest.raises(ValueError, match=r"'quick'.*'fast', 'slow'"):
            look_up("quick")


def test_equality_counts_names_ids_limits_and_order():
    modes = Modes(fast=5, slow=6)
    assert modes == Modes({"fast": (5,), "slow": Mode(6)})
    assert hash(modes) == hash(Modes({"fast": (5,), "slow": Mode(6)}))
    different = [
        Modes(slow=6, fast=5),
        Modes(fast=5, slow=7),
        Modes(fast=5, deep=6),
        Modes(fast=5, slow=Mode(6, max_new_tokens=9)),
        Modes(fast=5, slow=Mode(6, max_new_tokens=9, closing=7)),
        Modes(fast=5, slow=Mode(6, max_new_tokens=9, closing=7, close=8)),
        Modes(fast=5, slow=Mode(6, max_new_tokens=9, closing=7, breaks=8)),
        Modes(fast=5, slow=None),
        Modes(fast=5, slow=(6, 7)),
        {"fast": 5, "slow": 6},
        None,
    ]
    assert all(modes != other for other in different)
    assert len({modes, *(other for other in different if isinstance(other, Modes))}) == 10


@pytest.mark.parametrize(
    "modes",
    [
        Modes(fast=5, slow=6),
        Modes(fast=(10, 11, 12), slow=(10, 13)),
        Modes(fast=Mode(5, max_new_tokens=7), slow=None, third=Mode((6, 7), kv_tokens=32)),
        Modes(fast=5, slow=Mode(6, max_new_tokens=9, closing=(7, 8)), third=Mode(7, max_new_tokens=2, closing=9)),
        Modes(
            fast=5, slow=Mode(6, max_new_tokens=9, closing=(7, 8), close=8, breaks=(3, 4)), c=Mode(7, 2, None, 9, 8, ())
        ),
        Modes({"naïve – ✓": 0, 'a "quoted" name\n': 1}),
    ],
    ids=["plain", "prefix", "limits", "closings", "ends", "names"],
)
class TestCopies:
    def test_save_and_load(self, modes, tmp_path):
        modes.save_pretrained(tmp_path / "deep" / "er")
        loaded = Modes.from_pretrained(tmp_path / "deep" / "er")
        assert loaded == modes
        assert (loaded.prefix, loaded.token_ids, loaded.suffixes) == (modes.prefix, modes.token_ids, modes.suffixes)
        assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["modes.json"]

    def test_deep_copy(self, modes):
        assert copy.deepcopy(modes) == modes == copy.copy(modes)

    def test_repr_rebuilds_it(self, modes):
        if all(name.isidentifier() for name in modes.names):
            assert eval(repr(modes), {"Modes": Modes, "Mode": Mode}) == modes

    def test_str_path(self, modes, tmp_path):
        modes.save_pretrained(str(tmp_path))
        assert Modes.from_pretrained(str(tmp_path)) == modes


def test_saving_again_overwrites(tmp_path):
    Modes(fast=5, slow=6).save_pretrained(tmp_path)
    Modes(a=1, b=2).save_pretrained(tmp_path)
    assert Modes.from_pretrained(tmp_path) == Modes(a=1, b=2)


@pytest.mark.parametrize("folder", ["", "missing"], ids=["no file", "no folder"])
def test_loading_nothing_says_where_and_how(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"modes\.json.*{re.escape(str(tmp_path))}.*save_pretrained"):
        Modes.from_pretrained(tmp_path / folder)


BAD_FILES = {
    "not JSON": "{",
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "no modes": '{"kinds": []}',
    "modes null": '{"modes": null}',
    "modes of numbers": '{"modes": [1, 2]}',
    "no names": '{"modes": [{"ids": [1]}, {"ids": [2]}]}',
    "no ids": '{"modes": [{"name": "a"}, {"name": "b"}]}',
    "unknown field": '{"modes": [{"name": "a", "ids": [1], "colour": 3}, {"name": "b", "ids": [2]}]}',
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / "modes.json").write_text(BAD_FILES[name])
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / 'modes.json'))}.*save_pretrained"):
        Modes.from_pretrained(tmp_path)


def test_a_file_whose_modes_are_wrong_says_what_is_wrong(tmp_path):
    content = {"modes": [{"name": name, "ids": [1]} for name in "ab"]}
    (tmp_path / "modes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"same ids"):
        Modes.from_pretrained(tmp_path)


def test_modes_are_public():
    assert ak.Modes is Modes and ak.Mode is Mode
