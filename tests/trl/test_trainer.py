"""ADaPTTrainer end to end on a tiny model: rollouts, corners of groups and rows, logs, evaluation, checkpoints."""

import math

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

import tiny_trainer
from datasets import Dataset
from plain_adapt import METHODS
from tiny_trainer import EOS, FAST, PROMPTS, SLOW, losses, make_model, make_trainer
from transformers import AutoConfig, AutoModelForCausalLM

import adapt_kernels as ak

TINY = {"per_device_train_batch_size": 4, "max_steps": 1}


def rolled_out(trainer, prompts=PROMPTS[:1]):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": p, "reference_accuracy": 0.25} for p in prompts for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def step(trainer, batch):
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())
    return loss


def test_a_run_logs_its_modes_and_leaves_them_beside_the_model(tmp_path):
    seen = []

    def reward(completions, completion_ids, mode, **_):
        seen.extend(zip(mode, completion_ids, strict=True))
        return tiny_trainer.letters(completions)

    evaluation = Dataset.from_dict({"prompt": PROMPTS[:2]})
    trainer = make_trainer(tmp_path, reward=reward, eval_dataset=evaluation, per_device_eval_batch_size=8)
    trainer.train()
    assert ak.last_stats(trainer.model).plan == "full"
    logged = trainer.state.log_history[0]
    assert logged["modes/share_fast"] == logged["modes/share_slow"] == 0.5
    assert logged["modes/prob_fast"] == pytest.approx(1 - logged["modes/prob_slow"])
    assert 0 < logged["modes/entropy"] <= math.log(2) and logged["modes/ratio"] == pytest.approx(1, abs=1e-4)
    assert {"accuracy/fast", "accuracy/slow", "length/fast", "length/slow"} <= logged.keys()
    names = [name for name, _ in seen[:8]]
    assert names == ["fast", "fast", "slow", "slow"] * 2
    assert all(ids[0] == (FAST if name == "fast" else SLOW) for name, ids in seen)
    found = trainer.evaluate()
    assert found == {**found, **{k: v for k, v in trainer.evaluate().items() if k.startswith("eval_modes")}}
    assert math.isfinite(found["eval_loss"]) and 0 <= found["eval_modes/share_fast"] <= 1
    trainer.save_model(tmp_path / "saved")
    assert ak.Modes.from_pretrained(tmp_path / "saved") == trainer.modes


def test_modes_are_read_from_the_models_folder(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"no modes.json"):
        make_trainer(tmp_path, str(tmp_path / "model"), modes=None)
    ak.Modes(fast=FAST, slow=SLOW).save_pretrained(tmp_path / "model")
    trainer = make_trainer(tmp_path, str(tmp_path / "model"), modes=None, model_init_kwargs={"dtype": "float32"})
    assert trainer.modes.names == ("fast", "slow")


@pytest.mark.parametrize("scheme", METHODS)
def test_groups_without_variance_or_without_a_mode(tmp_path, scheme, monkeypatch):
    """All right, all wrong; then only slow rows: finite, and no credit where samples do not differ."""
    for value in (1.0, 0.0):
        trainer = make_trainer(tmp_path, scheme=scheme, reward=lambda completions, v=value, **_: [v] * len(completions))
        batch = rolled_out(trainer, PROMPTS[:2])
        assert batch["advantages"].isfinite().all()
        if scheme in ("grpo", "ada_grpo"):
            assert scheme == "ada_grpo" or not batch["advantages"].any()
        step(trainer, batch)
    trainer = make_trainer(tmp_path, scheme=scheme)
    monkeypatch.setattr("adapt_kernels.trl.rollout.row_modes", lambda forced, modes, first, rows, size: ["slow"] * rows)
    batch = rolled_out(trainer, PROMPTS[:2])
    assert (batch["completion_ids"][:, 0] == SLOW).all() and batch["advantages"].isfinite().all()
    if scheme == "separate":
        assert batch["advantages"][:, 0].abs().max() < 1e-6, "alone in its group, slow is neither better nor worse"
    step(trainer, batch)
    logged = trainer._metrics["train"]
    assert math.isnan(logged["accuracy/fast"][0]) and math.isfinite(logged["accuracy/slow"][0])


def test_odd_groups_and_rows_of_one_token(tmp_path):
    trainer = make_trainer(tmp_path, num_generations=3, per_device_train_batch_size=6)
    batch = rolled_out(trainer, PROMPTS[:2])
    assert batch["completion_ids"][:, 0].tolist() == [FAST, FAST, SLOW] * 2
    step(trainer, batch)
    for scheme in ("separate", "reference", "degrpo", "adaptthink"):
        trainer = make_trainer(tmp_path, scheme=scheme, max_completion_length=1, **TINY)
        batch = rolled_out(trainer)
        assert batch["completion_ids"].shape == (4, 1) and batch["num_response_tokens"] == 0
        step(trainer, batch)


def test_truncated_rows_keep_their_mode_token(tmp_path):
    model = make_model()
    whole = rolled_out(make_trainer(tmp_path, model))
    ended = (whole["completion_ids"] == EOS).any(1)
    assert ended.any() and not ended.all()
    trainer = make_trainer(tmp_path, make_model(), mask_truncated_completions=True)
    batch = rolled_out(trainer)
    assert torch.equal(batch["completion_ids"], whole["completion_ids"])
    assert batch["loss_mask"][:, 0].all() and not batch["loss_mask"][~ended, 1:].any()
    assert torch.equal(batch["loss_mask"][ended], whole["loss_mask"][ended])
    assert torch.equal(batch["completion_mask"], whole["completion_mask"]), "what is read stays what was written"
    assert batch["num_items_in_batch"] == batch["loss_mask"].sum()
    step(trainer, batch)


def test_unscored_rows_get_no_credit_and_count_for_nobody(tmp_path):
    reward = lambda completions, **_: [1.0, None, 0.0, 1.0]  # noqa: E731
    for scheme in METHODS:
        advantages = rolled_out(make_trainer(tmp_path, reward=reward, scheme=scheme, **TINY))["advantages"]
        assert not advantages[1].any() and advantages.isfinite().all()
    mode, rest = advantages[[0, 2, 3], 0], advantages[[0, 2, 3], 1]
    wanted = (torch.tensor([1.0, 0, 1]) - 2 / 3) / (torch.tensor([1.0, 0, 1]).std() + 1e-4)
    torch.testing.assert_close(mode, wanted)
    torch.testing.assert_close(rest, wanted)


def test_the_named_reward_says_what_is_correct(tmp_path):
    def style(completions, **_):
        return [0.0] * len(completions)

    def graded(completions, **_):
        return [0.2, 0.4, 0.2, 0.4]

    settings = {"correct_reward": "graded", "correct_threshold": 0.3, "reward_weights": [1.0, 0.0], **TINY}
    trainer = make_trainer(tmp_path, reward=[style, graded], scheme="degrpo", **settings)
    assert rolled_out(trainer)["advantages"][:, 0].tolist() == pytest.approx([-0.875, 1.125, -0.875, 0.625])


def test_masks_and_weights_of_the_mode_token(tmp_path):
    plain = make_trainer(tmp_path, mode_margin_coef=0.0)
    batch = rolled_out(plain, PROMPTS[:2])
    loss = plain.compute_loss(plain.model, batch).item()
    twice = make_trainer(tmp_path, mode_margin_coef=0.0, mode_weight=2.0)
    without = make_trainer(tmp_path, mode_margin_coef=0.0, mode_weight=0.0)
    losses = [step(t, rolled_out(t, PROMPTS[:2])).item() for t in (twice, without)]
    assert losses[0] - loss == pytest.approx(loss - losses[1], abs=1e-6) and losses[0] != pytest.approx(loss)
    masked = make_trainer(tmp_path, mode_margin_coef=0.0, mask_mode_token=True)
    batch = rolled_out(masked, PROMPTS[:2])
    assert not batch["loss_mask"][:, 0].any()
    assert step(masked, batch).item() == pytest.approx(
        losses[1] * (batch["num_items_in_batch"] + 8).item() / batch["num_items_in_batch"].item(), rel=1e-4
    )


def test_old_logprobs_of_the_policy_are_those_of_the_rollout(tmp_path):
    drawn = rolled_out(make_trainer(tmp_path, **TINY))
    scored = rolled_out(make_trainer(tmp_path, old_logprobs="policy", **TINY))
    mask = drawn["loss_mask"]
    torch.testing.assert_close(scored["old_logprobs"][mask], drawn["old_logprobs"][mask], rtol=1e-4, atol=1e-5)
    misaligned = {"num_iterations": 2, "steps_per_generation": 1}
    again = rolled_out(make_trainer(tmp_path, old_logprobs="policy", **misaligned, **TINY))
    torch.testing.assert_close(again["old_logprobs"][mask], drawn["old_logprobs"][mask], rtol=1e-4, atol=1e-5)


def test_modes_of_several_tokens(tmp_path):
    """Forced ids before and after the decision are read, and have no loss."""
    modes = ak.Modes(fast=(8, FAST, 9), slow=(8, SLOW))
    trainer = make_trainer(tmp_path, modes=modes, **TINY)
    batch = rolled_out(trainer)
    assert batch["completion_ids"][:, 0].tolist() == [8] * 4
    assert batch["loss_mask"][:, :3].tolist() == [[False, True, False]] * 2 + [[False, True, True]] * 2
    step(trainer, batch)
    assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)


def test_three_modes(tmp_path):
    modes = ak.Modes(fast=FAST, slow=SLOW, other=7)
    for scheme in ("ada_grpo", "avr", "grpo", "length_penalty"):
        trainer = make_trainer(tmp_path, modes=modes, scheme=scheme, mode_margin_coef=0.1, num_generations=8)
        batch = rolled_out(trainer)
        assert batch["completion_ids"][:, 0].tolist() == [FAST] * 3 + [SLOW] * 3 + [7] * 2
        step(trainer, batch)


def test_rows_of_several_iterations_and_accumulated_batches(tmp_path):
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    trainer = make_trainer(tmp_path, max_steps=4, steps_per_generation=2, **settings)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "modes/ratio" in entry]
    assert len(losses(trainer)) == 4 and all(map(math.isfinite, losses(trainer)))
    ratios = [entry["modes/ratio"] for entry in history]
    assert ratios[0] == pytest.approx(1, abs=1e-4) and ratios[1] != pytest.approx(1, abs=1e-4)


def test_the_completions_table_shows_both_advantages(tmp_path):
    trainer = make_trainer(tmp_path, log_completions=True, **TINY)
    trainer.train()
    import pandas

    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["mode"].tolist() == ["fast", "fast", "slow", "slow"]
    assert table["mode_advantage"].abs().max() <= 1.001 and len(table["advantage"]) == 4


def test_precisions_and_activation_checkpoints_leave_the_loss(tmp_path):
    exact = make_trainer(tmp_path, make_model(tie_word_embeddings=False), **TINY)
    expected = step(exact, rolled_out(exact)).item()
    for settings, tolerance in (
        ({"bf16": True}, 0.05),
        ({"bf16": True, "cast_lm_head_to_fp32": True}, 0.05),
        ({"gradient_checkpointing": True}, 1e-5),
    ):
        trainer = make_trainer(tmp_path, make_model(tie_word_embeddings=False), **settings, **TINY)
        loss = step(trainer, rolled_out(trainer))
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, abs=tolerance), settings
        trainer.train()


def test_softcaps_and_scales_of_the_logits_are_the_models(tmp_path):
    """Ratios are 1 only if the loss computes the logits that the rollout drew from."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(tiny_trainer.WORDS), "num_key_value_heads": 1, "head_dim": 8}
    for architecture, bent in (("gemma2", {"final_logit_softcapping": 2.0}), ("granite", {"logits_scaling": 0.2})):
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, initializer_range=0.5, **sizes, **bent)
        trainer = make_trainer(tmp_path, AutoModelForCausalLM.from_config(config), temperature=0.8, **TINY)
        step(trainer, rolled_out(trainer))
        assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)
        assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] == 0
