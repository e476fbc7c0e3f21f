"""Before any update the loss, the old log-probs and the reference score what was drawn: every ratio is 1, KL is 0.

Prompts of unequal length are padded on the left. Models with learned positions that are given none count the padding.
"""

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import PROMPTS, first_batch, make_architecture, make_trainer

# Learned positions; learned ones that the model counts itself; sinusoidal; rotary; none but the mask's.
ARCHITECTURES = {
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_bigcode": {},
    "opt": {},
    "xglm": {},
    "gptj": {},
    "llama": {},
    "bloom": {},
}
REPORTED = "gpt2"


def scores(trainer):
    """The first batch, and the log-probs of its loss."""
    batch = first_batch(trainer, [PROMPTS[1], PROMPTS[2]])
    assert batch["prompt_mask"].sum(1).unique().numel() == 2
    head = trainer._policy_head(batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    out = trainer.model(input_ids=ids, attention_mask=mask, policy_head=head)
    return batch, torch.where(batch["loss_mask"], out["logprobs"].detach(), 0.0), out


def same(logprobs, expected, mask):
    # Two orders of float32 sums, over at most 10 positions.
    torch.testing.assert_close(logprobs[mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_scores_what_was_drawn(tmp_path, architecture):
    trainer = make_trainer(tmp_path, make_architecture(architecture, **ARCHITECTURES[architecture]))
    batch, logprobs, out = scores(trainer)
    same(logprobs, batch["old_logprobs"], batch["loss_mask"])
    assert (out["ratio"][batch["loss_mask"]] - 1).abs().max() < 1e-3
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("architecture", [REPORTED, "gpt_neo", "llama"])
def test_old_logprobs_and_a_reference_model_do_too(tmp_path, architecture):
    folder = str(tmp_path / "model")
    make_architecture(architecture, **ARCHITECTURES[architecture]).save_pretrained(folder)
    settings = {"beta": 0.1, "use_bias_correction_kl": False, "old_logprobs": "policy"}
    trainer = make_trainer(tmp_path, folder, **settings, model_init_kwargs={"dtype": "float32"})
    batch, logprobs, _ = scores(trainer)
    drawn = batch["loss_mask"].clone()
    drawn[:, 0] = False  # the mode token's is the rollout's own
    assert torch.equal(batch["old_logprobs"][drawn], logprobs[drawn]), "the same forward"
    same(batch["ref_per_token_logps"], logprobs, batch["loss_mask"])
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["kl"][-1] < 1e-7


@pytest.mark.parametrize("architecture", [REPORTED, pytest.param("gpt_neo", marks=pytest.mark.full), "llama"])
def test_a_reference_by_disabled_adapters_does_too(tmp_path, architecture):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")
    model = make_architecture(architecture, **ARCHITECTURES[architecture])
    transposed = {"fan_in_fan_out": True} if architecture == "gpt2" else {}
    lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **transposed)
    settings = {"beta": 0.1, "use_bias_correction_kl": False}
    trainer = make_trainer(tmp_path, model, peft_config=lora, **settings)
    batch, logprobs, _ = scores(trainer)
    same(batch["ref_per_token_logps"], logprobs, batch["loss_mask"])
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    moved, again, _ = scores(trainer)
    same(again, moved["old_logprobs"], moved["loss_mask"])
    assert (moved["ref_per_token_logps"] - again)[moved["loss_mask"]].abs().max() > 0.1


def test_a_rollout_that_the_loss_does_not_see_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr("adapt_kernels.trl.policy_head.position_ids", lambda *_: None)
    trainer = make_trainer(tmp_path, make_architecture(REPORTED), prompts=PROMPTS[1:3] * 2, max_steps=2)
    with pytest.warns(UserWarning, match=r"ratios are not 1 before the first update \(mean \|log ratio\| ") as found:
        trainer.train()
    assert sum("ratios are not 1" in str(warning.message) for warning in found) == 1
