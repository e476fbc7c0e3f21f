"""generation_config.json of a checkpoint is for its users: a rollout is drawn from the policy's own distribution."""

import warnings

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import EOS, PROMPTS, first_batch, make_model, make_trainer
from transformers import GenerationConfig

LETTERS = list(range(4, 17))
# What it would do -> whether it is told; TRL gives every rollout its own of the others.
SETTINGS = [
    ({"suppress_tokens": LETTERS}, True),
    ({"begin_suppress_tokens": LETTERS}, True),
    ({"bad_words_ids": [[token] for token in LETTERS]}, True),
    ({"sequence_bias": [[[4], 5.0]]}, True),
    ({"forced_eos_token_id": EOS}, True),
    ({"forced_bos_token_id": 7}, True),
    ({"min_new_tokens": 5}, True),
    ({"no_repeat_ngram_size": 1}, True),
    ({"exponential_decay_length_penalty": [1, 3.0]}, True),
    ({"num_beams": 2}, True),
    ({"repetition_penalty": 3.0, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "min_p": 0.4, "do_sample": True}, False),
    ({"renormalize_logits": True, "typical_p": 0.3, "epsilon_cutoff": 0.1, "max_length": 2}, False),
]


def with_settings(settings):
    model = make_model()
    model.generation_config = GenerationConfig(**settings)
    return model


def rolled_out(tmp_path, model, told, **settings):
    """The first batch of a trainer whose construction said what a checkpoint's settings would have done."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer = make_trainer(tmp_path, model, **settings)
    assert any("generation_config sets" in str(warning.message) for warning in found) == told
    return trainer, first_batch(trainer)


@pytest.mark.parametrize(("settings", "told"), SETTINGS)
def test_the_rollout_is_the_policys_own(tmp_path, settings, told):
    """The tokens of a model without them, and log-probs that the loss gives again; the settings are kept."""
    _, plain = rolled_out(tmp_path, make_model(), False)
    model = with_settings(settings)
    before = model.generation_config.to_dict()
    trainer, batch = rolled_out(tmp_path, model, told)
    assert torch.equal(batch["completion_ids"], plain["completion_ids"])
    assert torch.equal(batch["old_logprobs"], plain["old_logprobs"])
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)
    assert {**model.generation_config.to_dict(), "pad_token_id": None} == {**before, "pad_token_id": None}


def test_of_a_folder_with_adapters_and_where_it_is_asked_for(tmp_path):
    folder = str(tmp_path / "model")
    with_settings({"suppress_tokens": LETTERS}).save_pretrained(folder)
    loaded = {"model_init_kwargs": {"dtype": "float32"}}
    _, plain = rolled_out(tmp_path, make_model(), False)
    assert any(token in plain["completion_ids"] for token in LETTERS)
    _, batch = rolled_out(tmp_path, folder, True, **loaded)
    assert torch.equal(batch["completion_ids"], plain["completion_ids"])
    asked = {"generation_kwargs": {"suppress_tokens": LETTERS}, "old_logprobs": "policy"}
    trainer, batch = rolled_out(tmp_path, folder, True, **loaded, **asked)
    assert not any(token in batch["completion_ids"] for token in LETTERS)
    assert trainer._policy_head(batch).old_logprobs is batch["old_logprobs"]
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] == 0
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")
    trainer, batch = rolled_out(tmp_path, folder, True, peft_config=peft.LoraConfig(task_type="CAUSAL_LM"), **loaded)
    assert torch.equal(batch["completion_ids"], plain["completion_ids"])
    assert trainer.model.get_base_model().generation_config.suppress_tokens == LETTERS
    evaluated = trainer.evaluate(trainer.train_dataset)
    assert evaluated["eval_modes/entropy"] > 0 and len(PROMPTS) == len(trainer.train_dataset)
