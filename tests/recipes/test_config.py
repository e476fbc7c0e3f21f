"""Settings from YAML files and options."""

import re
from dataclasses import fields

import pytest

from adapt_recipes.config import SHIPPED, load_config, named, parse_settings, raw_settings, shipped_configs
from adapt_recipes.evaluation.compare import EvalConfig
from adapt_recipes.training.adapter_config import AdapterConfig
from adapt_recipes.training.rl_config import RlConfig
from adapt_recipes.training.sft_config import SftConfig

DEFAULTS = {"sft_smollm2": AdapterConfig, "sft": SftConfig, "rl": RlConfig, "eval": EvalConfig}


@pytest.mark.parametrize("name", DEFAULTS)
def test_shipped_files_are_the_defaults(name):
    assert load_config(DEFAULTS[name], name) == load_config(DEFAULTS[name]) == DEFAULTS[name]()


def test_every_shipped_file_loads():
    kinds = {name: next(kind for key, kind in DEFAULTS.items() if name.startswith(key)) for name in shipped_configs()}
    assert set(DEFAULTS) < set(kinds)
    for name, kind in kinds.items():
        assert isinstance(load_config(kind, name), kind)


def test_a_command_finds_its_own_file():
    assert [named(command, "smollm2") for command in ("sft", "rl", "eval")] == [
        "sft_smollm2", "rl_smollm2", "eval_smollm2",
    ]  # fmt: skip
    assert named("rl", "sft") == "sft" and named("rl", "mine.yaml") == "mine.yaml" and named("rl", None) is None
    assert raw_settings("sft_smollm2")["base"] == "smollm2" and raw_settings(None) == {}


def test_options_go_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nlearning_rate: 1e-3\nmode_margin_coef: null\ntrainer: {length_penalty: 2}\n")
    config = load_config(RlConfig, path, seed=5, gamma=None)
    assert (config.seed, config.learning_rate, config.mode_margin_coef, config.gamma) == (5, 1e-3, None, 0.5)
    assert config.trainer == {"length_penalty": 2}


def test_what_is_set_to_null_is_none_whatever_the_file_says(tmp_path):
    given = parse_settings(["decay_steps=null", "iterations=30", "kl=null", "mode_margin_coef=null"], seed=None)
    config = load_config(RlConfig, "rl_smollm2", given)
    assert (config.decay_steps, config.kl, config.mode_margin_coef, config.iterations) == (None, None, None, 30)
    assert config.seed == 0
    with pytest.raises(ValueError, match="gamma: Input should be a valid number, got None"):
        load_config(RlConfig, "rl_smollm2", parse_settings(["gamma=null"]))


def test_phases_become_phases(tmp_path):
    path = tmp_path / "mine.yml"
    phase = "{steps: 5, learning_rate: 1.0e-3, fast_rows: 4, slow_rows: 4, fast_decay: 1, fast_answer_weight: 1}"
    path.write_text(f"phases: [{phase}]\n")
    assert load_config(SftConfig, path).total_steps == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gama: 0.5", "unknown key gama; allowed: model, fast, slow, task, seed"),
        ("gamma: high", r"gamma: Input should be a valid number.*got 'high'"),
        ("prompts: 2.5", "prompts: Input should be a valid integer"),
        ("gamma: 1.5", "gamma is an accuracy, from 0 to 1, got 1.5"),
        ("samples: 1", "samples must be at least 2, got 1: one answer has nothing to be compared with"),
        ("iterations: 0", "iterations must be at least 1, got 0"),
        ("learning_rate: 0", "learning_rate must be above 0"),
        ("task: chess", "no task family is named 'chess'; there is: running_sum, chain_sum, math"),
        ("task: math", "the task family math draws no problems to train on"),
        ("- a list", "must hold `name: value` lines, got list"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_files_name_themselves(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=f"(?s)^{re.escape(str(path))}.*{said}"):
        load_config(RlConfig, path)


def test_unknown_keys_inside_a_phase_are_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("phases: [{steps: 5, speed: 2}]\n")
    with pytest.raises(ValueError, match=r"phases\[0\]: unknown key speed; allowed: steps, learning_rate, fast_rows"):
        load_config(SftConfig, path)


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="no shipped configuration is named 'rll'; there is: .*rl, .*sft"):
        load_config(RlConfig, "rll")
    with pytest.raises(ValueError, match=r"configuration .*absent\.yaml does not exist"):
        load_config(RlConfig, tmp_path / "absent.yaml")


def test_settings_are_yaml_values():
    assert parse_settings(["gamma=0.25", "trainer={delta: 1}", "model=./a=b"]) == {
        "gamma": 0.25, "trainer": {"delta": 1}, "model": "./a=b",
    }  # fmt: skip
    assert parse_settings(None) == {}
    with pytest.raises(ValueError, match="--set takes NAME=VALUE, got 'gamma'"):
        parse_settings(["gamma"])


def test_shipped_files_name_every_setting_that_decides_a_checkpoint():
    """A reader of sft.yaml sees the whole recipe; rl.yaml leaves out only what is None."""
    assert {field.name for field in fields(SftConfig)} == set(_keys("sft"))
    unset = {field.name for field in fields(RlConfig) if getattr(RlConfig(), field.name) is None}
    assert {field.name for field in fields(RlConfig)} - unset == set(_keys("rl"))


def _keys(name):
    return re.findall(r"^(\w+):", (SHIPPED / f"{name}.yaml").read_text("utf-8"), re.M)
