"""What ADaPTTrainer does not honour is refused before a model is loaded."""

import re

import pytest

trl = pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

import tiny_trainer  # noqa: E402
from datasets import Dataset, DatasetDict, IterableDataset  # noqa: E402
from tiny_trainer import FAST, MODES, make_config, make_model, make_tokenizer, make_trainer  # noqa: E402
from transformers import Qwen2MoeConfig  # noqa: E402
from trl.distributed import DistributedBackend  # noqa: E402

import adapt_kernels as ak  # noqa: E402
from adapt_kernels.trl import ADaPTTrainer  # noqa: E402

BAD_SETTINGS = [
    ({"scheme": "adapt"}, "scheme must be one of 'separate', 'reference'.*got 'adapt'"),
    ({"rollout": "forced"}, "rollout must be one of 'balanced', 'auto'; got 'forced'"),
    ({"gamma": 1.5}, r"gamma must be in \[0, 1\].*got 1.5"),
    ({"num_generations": 1}, "num_generations must be at least 2.*got 1"),
    ({"max_completion_length": None}, "max_completion_length must be at least 1; got None"),
    ({"loss_type": "sapo"}, "loss_type must be one of 'grpo', 'bnpo', 'dr_grpo', 'dapo'; got 'sapo'"),
    ({"importance_sampling_level": "sequence"}, "does not honour importance_sampling_level='sequence', only 'token'"),
    ({"delta": 2.0}, "does not honour delta=2.0: use dual_clip"),
    ({"scale_rewards": "none"}, "does not honour scale_rewards='none'"),
    ({"top_entropy_quantile": 0.2}, "does not honour top_entropy_quantile=0.2"),
    ({"use_adaptive_entropy": True}, "does not honour use_adaptive_entropy=True: use entropy_coef"),
    ({"mode_kind": "gspo"}, "mode_kind must be one of 'none', 'ppo'"),
    ({"mode_weight": -1.0}, "mode_weight must be at least 0; got -1.0"),
    ({"dual_clip": 0.5}, "dual_clip must be above 1, or 0"),
    ({"repetition_penalty": 1.1}, "repetition_penalty may reshape the rollout's log-probs.*old_logprobs='policy'"),
    ({"generation_kwargs": {"suppress_tokens": [7]}}, "suppress_tokens may reshape"),
    ({"generation_kwargs": {"kv_keep": object()}}, "rollouts refuse kv_keep, since their tokens and log-probs"),
    ({"degrpo_rewards": [1.0]}, "degrpo_rewards must be"),
    ({"length_scale": 0.0}, "length_scale must be above 0"),
]


@pytest.mark.parametrize(("settings", "text"), BAD_SETTINGS)
def test_settings(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        make_config(tmp_path, **settings)


BAD_KINDS = [
    ({"scheme": ["grpo"]}, r"scheme must be one of .*got \['grpo'\]"),
    ({"mode_weight": "2"}, "mode_weight must be a number; got '2'"),
    ({"mode_margin_coef": float("nan")}, "mode_margin_coef must be finite; got nan"),
    ({"mask_mode_token": "no"}, "mask_mode_token must be True or False; got 'no'"),
    ({"num_generations": 2.5}, "num_generations must be a whole number; got 2.5"),
    ({"correct_reward": 3}, "correct_reward must be a name; got 3"),
    ({"reward_weights": 1.0}, "reward_weights must be a list with a number for each reward function; got 1.0"),
    ({"signals": 3}, "signals must be a mapping with names as keys, or None; got 3"),
    ({"scheme": "fapo", "signals": {"flawed": 3}}, "signals: 'flawed' must be the name of a reward function or a col"),
    ({"constants": {3: 4}}, "constants must be a mapping with names as keys, or None; got {3: 4}"),
    ({"gamma": "0.5"}, "gamma must be a number; got '0.5'"),
    ({"gamma": {"begin": 1}}, "a schedule: Schedule has no 'begin'; it has start, end, shape, factor, every"),
    ({"gamma": {"end": 1.0}}, "a schedule: .*'start'"),
    ({"paths": {"keeps": 2}}, "paths: Paths has no 'keeps'; it has keep, at"),
]


@pytest.mark.parametrize(("settings", "text"), BAD_KINDS)
def test_fields_of_another_kind(tmp_path, settings, text):
    with pytest.raises((TypeError, ValueError), match=text):
        make_config(tmp_path, **settings)


def build(tmp_path, monkeypatch, args=None, model="no-such-model", modes=MODES, reward=tiny_trainer.letters, **others):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", loaded)
    given = {"processing_class": make_tokenizer(), "train_dataset": Dataset.from_dict({"prompt": ["a"]}), **others}
    return ADaPTTrainer(model, reward, modes, make_config(tmp_path) if args is None else args, **given)


def test_arguments(tmp_path, monkeypatch):
    def refused(error, text, *arguments, **settings):
        with pytest.raises(error, match=text):
            build(tmp_path, monkeypatch, *arguments, **settings)

    make_model().save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    refused(TypeError, "args must be an ADaPTConfig; got GRPOConfig", trl.GRPOConfig(str(tmp_path), use_cpu=True))
    refused(ValueError, "'<slow>' is not one token", modes={"fast": "<answer>", "slow": "<slow>"})
    refused(ValueError, "token id 99 of .* outside the model's vocabulary of 31", None, folder, ak.Modes(a=FAST, b=99))
    refused(ValueError, "reward_funcs must hold at least one", reward=[])
    refused(ValueError, "does not honour tools", tools=[len])
    refused(ValueError, "does not honour rollout_func", rollout_func=print)
    refused(TypeError, "processing_class must be a tokenizer", processing_class=object())
    three = ak.Modes(a=2, b=3, c=4)
    refused(ValueError, "scheme 'separate' is defined for 2 modes; got 3", modes=three)
    refused(ValueError, "one of 'letters'; got 'other'", make_config(tmp_path, correct_reward="other"))
    refused(ValueError, "column 'reference_accuracy'", make_config(tmp_path, scheme="adaptthink"))
    few = make_config(tmp_path, scheme="grpo", num_generations=2)
    refused(ValueError, "num_generations of at least 3, one per mode; got 2", few, modes=three)
    other = ak.Modes(fast=FAST, slow=None)
    refused(ValueError, "mode_margin_coef needs modes with a token each", modes=other)
    short = make_config(tmp_path, max_completion_length=1)
    refused(ValueError, "must hold the 2 tokens that open a mode; got 1", short, modes=ak.Modes(a=(8, 2), b=(8, 3)))
    with pytest.raises(AssertionError, match="the model was loaded"):
        build(tmp_path, monkeypatch, model=folder)


def stream(columns):
    """As a generator gives it: its columns are not known before the first example."""

    def rows():
        for _ in range(8):
            yield dict.fromkeys(columns, 0.5) | {"prompt": "a b"}

    found = IterableDataset.from_generator(rows)
    assert found.column_names is None
    return found


def table(columns):
    return Dataset.from_dict({"prompt": ["a b"] * 4, **{name: [0.5] * 4 for name in columns}})


@pytest.mark.parametrize("make", [table, stream])
def test_columns(tmp_path, monkeypatch, make):
    """Those that the trainer writes, and those it needs, in every data set it is given."""
    plain = make_config(tmp_path)
    thinking = make_config(tmp_path, scheme="adaptthink")
    both = make(["reference_accuracy"])
    cases = [
        (plain, {"train_dataset": make(["mode"])}, "train_dataset has a column 'mode'.*rename_column"),
        (plain, {"eval_dataset": make(["mode"])}, "eval_dataset has a column 'mode'"),
        (plain, {"eval_dataset": {"a": both, "b": make(["mode"])}}, r"eval_dataset\['b'\] has a column 'mode'"),
        (thinking, {"train_dataset": make([])}, "column 'reference_accuracy'.*; train_dataset has prompt"),
        (thinking, {"train_dataset": both, "eval_dataset": make([])}, "; eval_dataset has prompt"),
        (thinking, {"train_dataset": both, "eval_dataset": DatasetDict(a=table([]))}, r"dataset\['a'\] has prompt"),
    ]
    for args, sets, text in cases:
        with pytest.raises(ValueError, match=text):
            build(tmp_path, monkeypatch, args, **sets)
    make_model().save_pretrained(tmp_path / "model")
    with pytest.raises(AssertionError, match=LOADED):
        sets = {"train_dataset": both, "eval_dataset": {"a": both}}
        build(tmp_path, monkeypatch, thinking, str(tmp_path / "model"), **sets)


def test_a_stream_with_the_column_trains_and_late_data_sets_are_checked(tmp_path):
    args = make_config(tmp_path, scheme="adaptthink", max_steps=1)
    given = {"processing_class": make_tokenizer(), "train_dataset": stream(["reference_accuracy"])}
    trainer = ADaPTTrainer(make_model(), tiny_trainer.letters, MODES, args, **given)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match="; eval_dataset has prompt"):
        trainer.evaluate(table([]))
    with pytest.raises(ValueError, match="eval_dataset has a column 'mode'"):
        trainer.evaluate(table(["mode", "reference_accuracy"]))
    assert "eval_loss" in trainer.evaluate(table(["reference_accuracy"]))


AUX_LOSS = "load-balancing loss of this model is not computed: set router_aux_loss_coef=0.0"
FSDP1 = "rollouts need FSDP2"
LOADED = "the model was loaded"


def test_the_load_balancing_loss(tmp_path, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2MoeConfig(vocab_size=31, num_experts=2, num_experts_per_tok=1, router_aux_loss_coef=0.01, **sizes)
    config.save_pretrained(tmp_path / "experts")
    folder = str(tmp_path / "experts")
    with pytest.raises(ValueError, match=AUX_LOSS):
        build(tmp_path, monkeypatch, model=folder)
    off = {"router_aux_loss_coef": 0.0}
    for settings in (off, {"model_init_kwargs": off}):
        with pytest.raises(AssertionError, match=LOADED):
            build(tmp_path, monkeypatch, make_config(tmp_path, **settings), folder)
    make_model().save_pretrained(tmp_path / "dense")
    # Without experts TRL refuses the setting itself, by the loaded model.
    with pytest.raises(AssertionError, match=LOADED):
        build(tmp_path, monkeypatch, make_config(tmp_path, router_aux_loss_coef=0.1), str(tmp_path / "dense"))


def test_fsdp1(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the training arguments write it

    def asked(version):
        return make_config(tmp_path, fsdp=True, fsdp_config={"version": version})

    plain = make_config(tmp_path)
    environments = [({}, 1), ({"FSDP_VERSION": "1"}, 1), ({"FSDP_VERSION": "2"}, 2)]
    cases = [(asked(1), {}, 1), (asked(2), {}, 2), (asked(2), {"ACCELERATE_USE_FSDP": "true"}, 2)]
    cases += [(plain, {"FSDP_VERSION": "1"}, 2)]
    cases += [(plain, {"ACCELERATE_USE_FSDP": "true", **variables}, version) for variables, version in environments]
    for args, variables, version in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            error, text = (ValueError, FSDP1) if version == 1 else (AssertionError, LOADED)
            with pytest.raises(error, match=text):
                build(tmp_path, patch, args, folder)


def test_what_only_the_prepared_trainer_shows(tmp_path, monkeypatch):
    """The checks after TRL's own set-up, reached by leaving out the earlier ones."""

    class FSDP1Backend(DistributedBackend):
        def __init__(self, accelerator):
            super().__init__(accelerator)
            self.fsdp_version = 1

    monkeypatch.setattr("trl.trainer.grpo_trainer.DistributedBackend", FSDP1Backend)
    with pytest.raises(ValueError, match=FSDP1):
        make_trainer(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("adapt_kernels.trl.trainer.check_model", lambda *_: None)
    model = make_model()
    model.config.output_router_logits, model.config.router_aux_loss_coef = False, 0.01
    with pytest.raises(ValueError, match=AUX_LOSS):
        make_trainer(tmp_path, model)


def test_a_prompt_that_already_chose_and_other_versions_of_trl(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, prompts=["a <think>"] * 4)
    with pytest.raises(ValueError, match="already ends in the tokens of mode 'slow'"):
        trainer.train()
    monkeypatch.setattr(trl, "__version__", "9.9.9")
    with pytest.raises(RuntimeError, match=r"knows trl 1\.16\.0; got 9\.9\.9.*pip install trl=="):
        make_trainer(tmp_path)


ENGINE = [
    ({"vllm_mode": "server"}, "vllm_mode='server': modes and their log-probs of single rows need the engine"),
    ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size must be 1"),
    ({"top_p": 0.9}, "top_p=0.9: rollouts through vLLM are drawn from the policy itself"),
    ({"top_k": 5}, "top_k=5: rollouts through vLLM"),
    ({"generation_kwargs": {"min_p": 0.1}}, "min_p=0.1: rollouts through vLLM"),
    ({"paths": {"keep": 2, "at": 1}}, "paths is not kept by rollouts through vLLM"),
    ({"vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode is not kept"),
]


@pytest.mark.parametrize(("settings", "text"), ENGINE)
def test_rollouts_through_an_engine_refuse_what_they_would_not_do(tmp_path, settings, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make_config(tmp_path, use_vllm=True, **{"vllm_mode": "colocate", **settings})
    assert make_config(tmp_path, use_vllm=True, vllm_mode="colocate").vllm_importance_sampling_correction is False
