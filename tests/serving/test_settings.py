"""The settings of one request: what is taken, and what is refused by name."""

import json

import pytest

from adapt_kernels.modes import Mode, Modes
from adapt_kernels.program.program import Program
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import NAMES, Settings, check_names, misplaced, parse

THINK = {"think": {"open": 6, "close": 8}}
CAP = {"spans": THINK, "rules": [{"force": [8], "when": {"in": "think", "count": [4, None]}}]}


def served(modes="two", programs=None, **kwargs):
    modes = Modes(fast=5, slow=6) if modes == "two" else modes
    return Served(modes, programs or {"cap": Program.from_dict(CAP)}, eos_ids=(2,), **kwargs)


TAKEN = [
    ({}, Settings()),
    (None, Settings()),
    ({"top_n_sigma": 3, "model": "x"}, Settings()),
    ({"mode": "slow"}, Settings(mode="slow")),
    ({"mode": "auto", "mode_bias": 1}, Settings(mode="auto", bias=(1.0, 0.0))),
    ({"mode_bias": {"slow": 2.0}}, Settings(bias=(0.0, 2.0))),
    ({"mode_bias": '{"slow": -1}'}, Settings(bias=(0.0, -1.0))),
    ({"mode_bias": float("inf")}, Settings(bias=(float("inf"), 0.0))),
    ({"fast_prob": 0.25, "adapt_seed": 2**64 - 1}, Settings(fast_prob=0.25, seed=2**64 - 1)),
    ({"thinking_budget": 0}, Settings(thinking_budget=0)),
    ({"program": "cap"}, Settings(program=Program.from_dict(CAP))),
    ({"program": json.dumps(CAP)}, Settings(program=Program.from_dict(CAP))),
    ({"program": CAP, "mode": None}, Settings(program=Program.from_dict(CAP))),
]


@pytest.mark.parametrize(("given", "wanted"), TAKEN)
def test_taken(given, wanted):
    assert parse(given, served()) == wanted


REFUSED = [
    ({"mode": "fst"}, r"^mode: must be 'auto' or one of 'fast', 'slow'; got 'fst'"),
    ({"mode": 1}, "^mode: must be"),
    ({"mode": "balanced"}, "^mode: 'balanced' splits the samples of one prompt"),
    ({"mode": "fast", "mode_bias": 0.0}, "^mode: 'fast' already decides the mode, leave out mode_bias"),
    ({"mode_bias": 1.0, "fast_prob": 0.5}, "^mode_bias: it and fast_prob both set"),
    ({"mode_bias": float("nan")}, "^mode_bias: must be a number"),
    ({"mode_bias": "much"}, "^mode_bias: 'much' is not JSON"),
    ({"mode_bias": {"quick": 1.0}}, "^mode_bias: no mode is called 'quick', there are 'fast', 'slow'"),
    ({"mode_bias": True}, "^mode_bias: must be a number"),
    ({"fast_prob": 0.0}, r"^fast_prob: must be a number inside \(0, 1\); got 0.0"),
    ({"fast_prob": 1}, "^fast_prob: must be"),
    ({"fast_prob": "0.5"}, "^fast_prob: must be"),
    ({"thinking_budget": -1}, "^thinking_budget: must be a whole number of tokens >= 0; got -1"),
    ({"thinking_budget": 1.5}, "^thinking_budget: must be a whole"),
    ({"adapt_seed": 2**64}, "^adapt_seed: a seed must fit 64 bits"),
    ({"adapt_seed": 0.5}, "^adapt_seed: must be an integer"),
    ({"program": "caps"}, r"^program: must be the name of a program of this server \('cap'\)"),
    ({"program": "{"}, "^program: '{' is not JSON"),
    ({"program": {"rules": [{"force": "a text"}]}}, "^program: "),
    ({"program": 3}, "^program: a program is an object"),
]


@pytest.mark.parametrize(("given", "text"), REFUSED)
def test_refused_by_name(given, text):
    with pytest.raises(ValueError, match=text):
        parse(given, served())


NEAR = {
    "fastprob": "fast_prob", "fast-prob": "fast_prob", "Fast_Prob": "fast_prob", "fast_probs": "fast_prob",
    "mode_biases": "mode_bias", "modebias": "mode_bias", "modes": "mode", "thinking_budgets": "thinking_budget",
    "thinkingBudget": "thinking_budget", "programs": "program", "adapt_seeds": "adapt_seed",
    "adapt_row": "adapt_seed", "adapt_mode": "adapt_seed",
}  # fmt: skip


@pytest.mark.parametrize("key", NEAR)
def test_a_near_miss_is_refused_with_what_it_may_mean(key):
    with pytest.raises(ValueError, match=f"^{key}: unknown setting, did you mean {NEAR[key]}"):
        check_names({key: 1})


@pytest.mark.parametrize("key", ["model", "seed", "temperature", "kv_transfer_params", "top_k", "mood_board"])
def test_keys_of_others_pass(key):
    assert not check_names({key: 1})


def test_the_names_are_known():
    assert check_names(dict.fromkeys(NAMES)) and not check_names(None)
    assert misplaced(["prompt", "fast_prob"]) == "fast_prob" and misplaced(["prompt"]) is None


def test_a_model_without_modes_says_how_to_give_them():
    for given in ({"mode": "fast"}, {"mode_bias": 1.0}, {"fast_prob": 0.5}):
        with pytest.raises(ValueError, match=r"this model has no modes: put a modes.json beside it"):
            parse(given, served(None))


def test_a_cap_of_a_mode_is_not_dropped_silently():
    capped = Modes(fast=5, slow=Mode(6, max_new_tokens=9))
    with pytest.raises(ValueError, match=r"^mode: mode 'slow' has max_new_tokens.*send thinking_budget"):
        parse({"mode": "fast"}, served(capped))
    assert parse({"program": "cap"}, served(capped)).program is not None


PROBE = {"probe": [3], "max": 2, "measure": "mean_prob", "into": "c", "when": {"after": 6}}
UNSERVED = [
    ({"rules": [PROBE]}, r"rules\[0\] \(probe\): a probe decodes aside"),
    ({"rules": [{"sample": {"temperature": 1.0}}]}, "the engine's own sampler has the settings"),
    ({"rules": [{"force": [8], "when": {"drawn": 2}}]}, "'drawn' replaces a token after the draw"),
    ({"rules": [{"force": [], "stop": True, "when": {"at": 3}}]}, "'stop' ends a row"),
    ({"rules": [{"bias": 3, "by": "ban", "when": {"if": {"entropy": [1, None]}}}]}, "the signal 'entropy' is of"),
    ({"rules": [{"bias": 3, "by": "ban", "when": {"at": [0, {"input": "n"}]}}]}, "reads the row input 'n'"),
    ({"rules": [{"bias": [3, 4], "by": "only"}, {"bias": [3, 4, 5], "by": "ban"}]}, "leave no token"),
    ({"rules": [{"bias": [3], "by": "only"}, {"bias": [4], "by": "only"}]}, "leave no token"),
]


@pytest.mark.parametrize(("definition", "text"), UNSERVED)
def test_a_program_that_no_engine_can_follow_is_refused(definition, text):
    with pytest.raises(ValueError, match=f"^program: .*{text}"):
        parse({"program": definition}, served())
    with pytest.raises(ValueError, match=f"^the program 'mine' of this server: .*{text}"):
        served(programs={"mine": Program.from_dict(definition)})


class Tokenizer:
    """Counts how often it is loaded; its vocabulary is one letter per id."""

    unk_token_id, loads = None, 0

    def get_vocab(self):
        return {"<think>": 6, "</think>": 8, "a": 1}

    def get_added_vocab(self):
        return {}

    def encode(self, text, add_special_tokens=False):
        return [self.get_vocab()[text]]

    def convert_ids_to_tokens(self, ids):
        return ["a" for _ in ids]

    def decode(self, ids):
        return "a"


def test_the_tokenizer_is_loaded_for_texts_and_tags_only():
    loads = []
    model = served(tokenizer=lambda: loads.append(1) or Tokenizer())
    parse({"program": CAP, "mode": "fast", "thinking_budget": 3}, model)
    assert not loads
    assert model.budget.rules and len(loads) == 1
    parse({"program": {"rules": [{"bias": "a", "by": "ban"}]}}, model)
    assert len(loads) == 1


def test_a_budget_without_tags_is_refused():
    with pytest.raises(ValueError, match="nobody tells where a thought opens and closes"):
        assert served().budget


def test_a_folder_brings_modes_and_a_program(tmp_path, monkeypatch):
    Modes(quick=3, long=4).save_pretrained(tmp_path)
    Program.from_dict(CAP).save_pretrained(tmp_path)
    model = Served.of_folder(tmp_path)
    assert model.modes == Modes(quick=3, long=4) and list(model.programs) == ["default"]
    other, more = tmp_path / "other", tmp_path / "more"
    Modes(a=1, b=2).save_pretrained(other)
    Program.from_dict(CAP).save_pretrained(more)
    monkeypatch.setenv("ADAPT_KERNELS_MODES", str(other))
    monkeypatch.setenv("ADAPT_KERNELS_PROGRAMS", f"cap={more}")
    model = Served.of_folder(tmp_path)
    assert model.modes == Modes(a=1, b=2) and list(model.programs) == ["default", "cap"]
    monkeypatch.setenv("ADAPT_KERNELS_PROGRAMS", str(more))
    with pytest.raises(ValueError, match="ADAPT_KERNELS_PROGRAMS must be NAME=FOLDER"):
        Served.of_folder(tmp_path)
    monkeypatch.setenv("ADAPT_KERNELS_PROGRAMS", f"cap={tmp_path / 'nothing'}")
    with pytest.raises(FileNotFoundError, match="no program.json"):
        Served.of_folder(tmp_path)
