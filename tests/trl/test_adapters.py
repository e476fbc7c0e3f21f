"""Adapters that change the head: the loss projects with the weight that the module computes with, and trains it.

The natural set-up for new mode tokens is LoRA beside trainable_token_indices, whose rows are in a wrapper of the head.
"""

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")
peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")

from tiny_trainer import FAST, SLOW, first_batch, make_architecture, make_model, make_trainer  # noqa: E402

TOKENS = [FAST, SLOW]
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
# (the model, what is trained beside LoRA, the parameters of the head that it adds)
SET_UPS = {
    "tied": (
        lambda: make_model(tie_word_embeddings=True),
        {"trainable_token_indices": TOKENS},
        "embed_tokens.token_adapter.trainable_tokens_delta",
    ),
    "untied": (
        lambda: make_model(tie_word_embeddings=False),
        {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}},
        "lm_head.token_adapter.trainable_tokens_delta",
    ),
    "head alone, with a bias": (
        lambda: make_architecture("phi"),
        {"trainable_token_indices": {"lm_head": TOKENS}},
        "lm_head.token_adapter.trainable_tokens_delta",
    ),
    "embeddings alone": (
        lambda: make_model(tie_word_embeddings=False),
        {"trainable_token_indices": {"embed_tokens": TOKENS}},
        "embed_tokens.token_adapter.trainable_tokens_delta",
    ),
    "a head of its own": (
        lambda: make_model(tie_word_embeddings=False),
        {"modules_to_save": ["lm_head"]},
        "lm_head.modules_to_save",
    ),
}


def with_adapter(tmp_path, name, **settings):
    build, beside, trained = SET_UPS[name]
    trainer = make_trainer(tmp_path, build(), peft_config=peft.LoraConfig(**LORA, **beside), **settings)
    parameters = {n: p for n, p in trainer.model.named_parameters() if trained in n and p.requires_grad}
    assert parameters
    return trainer, parameters


def plain_logprobs(trainer, batch):
    """By the model's own logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    width = batch["completion_ids"].shape[1]
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -width - 1 : -1]
    return logits.double().log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]


@pytest.mark.parametrize("name", SET_UPS)
def test_loss_and_gradient_are_those_of_the_models_own_logits(tmp_path, name):
    kinds = {"mode_kind": "reinforce", "response_kind": "reinforce", "mode_margin_coef": 0.0}
    trainer, parameters = with_adapter(tmp_path, name, **kinds)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch = first_batch(trainer)
    weights = torch.where(batch["loss_mask"], batch["advantages"].double(), 0.0) / batch["num_items_in_batch"]
    expected = -(weights * plain_logprobs(trainer, batch)).sum()
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)
    found = torch.autograd.grad(loss, parameters.values())
    wanted = torch.autograd.grad(expected, parameters.values())
    for gradient, value in zip(found, wanted, strict=True):
        assert value.norm() > 1e-4
        assert (gradient - value).norm() <= 1e-4 * value.norm()


@pytest.mark.parametrize("name", [n if "tied" in n else pytest.param(n, marks=pytest.mark.full) for n in SET_UPS])
def test_a_run_trains_the_rows_and_leaves_the_others(tmp_path, name):
    settings = {"beta": 0.1, "use_bias_correction_kl": False, "max_steps": 3, "logging_steps": 1}
    trainer, parameters = with_adapter(tmp_path, name, **settings)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(before[n], after[n]) for n in parameters)
    assert all(torch.equal(before[n], p) for n, p in after.items() if not p.requires_grad)
    history = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert abs(history[0]) < 1e-7 and history[-1] > 1e-7, "the reference is the model without its adapters"
    batch = first_batch(trainer)
    with trainer.model.disable_adapter():
        reference = plain_logprobs(trainer, batch)
    seen = batch["ref_per_token_logps"].double()
    torch.testing.assert_close(seen[batch["loss_mask"]], reference[batch["loss_mask"]], rtol=1e-4, atol=1e-4)


def test_an_adapter_that_is_trained_on_has_its_start_as_reference(tmp_path):
    config = peft.LoraConfig(**LORA, trainable_token_indices=TOKENS)
    model = peft.get_peft_model(make_model(tie_word_embeddings=True), config)
    delta = next(p for n, p in model.named_parameters() if "trainable_tokens_delta" in n)
    with torch.no_grad():
        delta += 0.3
    trainer = make_trainer(tmp_path, model, beta=0.1, use_bias_correction_kl=False, max_steps=2)
    batch = first_batch(trainer)
    start = torch.where(batch["loss_mask"], plain_logprobs(trainer, batch), 0.0)
    reference = torch.where(batch["loss_mask"], batch["ref_per_token_logps"], 0.0)
    torch.testing.assert_close(reference.double(), start, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        delta -= 0.3
    moved = first_batch(trainer)
    away = (moved["ref_per_token_logps"].double() - plain_logprobs(trainer, moved))[moved["loss_mask"]]
    assert away.abs().max() > 1e-2


def test_an_adapter_on_the_head_is_refused(tmp_path):
    """By TRL, whose own loss does not see it either."""
    config = peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(ValueError, match=r"PEFT adapter to `lm_head` is not supported"):
        make_trainer(tmp_path, make_model(tie_word_embeddings=False), peft_config=config)


@pytest.mark.parametrize("name", SET_UPS)
def test_merged_rollouts_are_the_same_and_leave_every_weight_as_it_was(tmp_path, name):
    def rolled_out(merge):
        trainer, parameters = with_adapter(tmp_path, name, merge_adapter=merge)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        before = {key: value.clone() for key, value in trainer.model.named_parameters()}
        merged, generate = [], trainer.model.get_base_model().generate

        def seen(*args, **kwargs):
            merged.extend(m.merged for m in trainer.model.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
            return generate(*args, **kwargs)

        trainer.model.get_base_model().generate = seen
        batch = first_batch(trainer)
        after = dict(trainer.model.named_parameters())
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert set(merged) == {merge}
        assert not any(getattr(module, "merged", False) is True for module in trainer.model.modules())
        return batch

    plain, merged = rolled_out(False), rolled_out(True)
    assert torch.equal(plain["completion_ids"], merged["completion_ids"])
    # The products are summed in another order.
    torch.testing.assert_close(plain["old_logprobs"], merged["old_logprobs"], rtol=1e-4, atol=1e-5)


def test_merging_needs_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="merge_adapter=True needs a PEFT model"):
        make_trainer(tmp_path, make_model(), merge_adapter=True)
