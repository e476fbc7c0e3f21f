"""Nothing that is not finite reaches the optimiser: what it was is named, and the weights stay as they were."""

import math

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import PROMPTS, first_batch, make_model, make_tokenizer, make_trainer
from transformers import Qwen2Config, Qwen2ForSequenceClassification

INF, NAN = math.inf, math.nan


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def stops(trainer, error, text):
    """The run ends with that error, and no weight has moved."""
    before = weights(trainer)
    with pytest.raises(error, match=text):
        trainer.train()
    assert all(torch.equal(now, then) for now, then in zip(weights(trainer), before, strict=True))


def some(value, row=3):
    def graded(completions, **_):
        return [value if i == row else float(i % 2) for i in range(len(completions))]

    return graded


@pytest.mark.parametrize("value", [-INF, INF, NAN])
def test_a_reward_that_is_not_finite(tmp_path, value):
    text = r"reward function 'graded' gave inf or NaN for rows \[3\] of the batch.*return None for a row"
    stops(make_trainer(tmp_path, reward=some(value)), ValueError, text)


def test_a_reward_of_another_function_and_kind(tmp_path):
    async def later(completions, **_):
        return [NAN] * len(completions)

    def first(completions, **_):
        return [1.0] * len(completions)

    text = r"reward function 'later' gave inf or NaN for rows \[0, 1, 2, 3, 4, 5, 6, 7\]"
    stops(make_trainer(tmp_path, reward=[first, later]), ValueError, text)
    names = {"pad_token_id": 0, "num_labels": 1, "vocab_size": 31, "name_or_path": "models/judge"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    judge = Qwen2ForSequenceClassification(Qwen2Config(intermediate_size=16, **sizes, **names))
    torch.nn.init.constant_(judge.score.weight, NAN)
    trainer = make_trainer(tmp_path, reward=[first, judge], reward_processing_classes=[None, make_tokenizer()])
    stops(trainer, ValueError, "reward function 'judge' gave inf or NaN for rows")


def test_none_is_a_row_that_is_not_scored(tmp_path):
    trainer = make_trainer(tmp_path, reward=some(None))
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in weights(trainer))


@pytest.mark.parametrize("scheme", ["separate", *(pytest.param(s, marks=pytest.mark.full) for s in ("degrpo", "grpo"))])
def test_rewards_whose_sum_is_not_finite(tmp_path, scheme):
    huge = lambda completions, **_: [3e38 * (i % 2) for i in range(len(completions))]  # noqa: E731
    trainer = make_trainer(tmp_path, reward=[huge, huge], scheme=scheme)
    stops(trainer, ValueError, r"the weighted reward is not finite for rows \[1, 3, 5, 7\] of the batch")


def test_a_reference_accuracy_that_is_not_finite(tmp_path):
    trainer = make_trainer(tmp_path, scheme="adaptthink")
    trainer.train_dataset = trainer.train_dataset.remove_columns("reference_accuracy").add_column(
        "reference_accuracy", [NAN] * len(PROMPTS)
    )
    stops(trainer, ValueError, r"'adaptthink' needs reference_accuracy of every row; it is not finite for rows \[0, 1")
    with pytest.raises(ValueError, match=r"reward_weights must be finite; got inf"):
        make_trainer(tmp_path, reward_weights=[INF])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_policy_that_breaks_stops_with_its_name_and_step(tmp_path, value):
    folder = str(tmp_path / "a-policy")
    make_model().save_pretrained(folder)
    trainer = make_trainer(tmp_path, folder, model_init_kwargs={"dtype": "float32"})
    batch = first_batch(trainer)
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = value
    with pytest.raises(RuntimeError, match=r"policy '.*a-policy' at step 0: \d+ values of log-probs of the policy"):
        trainer.compute_loss(trainer.model, batch)


def test_a_policy_that_breaks_in_a_run(tmp_path):
    """Infinite weights after the first step: the next rollout has nothing to draw from."""
    trainer = make_trainer(tmp_path, learning_rate=1e38, max_steps=4)
    with pytest.raises(RuntimeError, match="policy 'Qwen2ForCausalLM' at step 1: row 0: no token is left to draw"):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_reference_that_is_not_finite(tmp_path, value):
    folder = str(tmp_path / "model")
    make_model().save_pretrained(folder)
    settings = {"beta": 0.1, "use_bias_correction_kl": False, "model_init_kwargs": {"dtype": "float32"}}
    trainer = make_trainer(tmp_path, folder, **settings)
    with torch.no_grad():
        trainer.ref_model.model.norm.weight.fill_(value)
    stops(trainer, RuntimeError, r"\d+ values of log-probs of the reference model are not finite")


def test_a_loss_that_is_not_finite(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = first_batch(trainer)
    batch["advantages"][0, 1] = INF
    with pytest.raises(RuntimeError, match="1 values of the loss are not finite, so nothing more is trained"):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_that_is_not_finite(tmp_path, accumulation):
    """The loss is; max_grad_norm would spread the NaN over every weight."""
    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 1.0, "per_device_train_batch_size": 4}
    trainer = make_trainer(tmp_path, **settings)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * NAN)
    stops(trainer, RuntimeError, r"step 0: the gradient of .*norm.weight is not finite, so the optimiser does not step")
