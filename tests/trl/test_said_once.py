"""What makes a run another one than it looks like is said once, at construction, with the remedy."""

import warnings

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import first_batch, make_architecture, make_config, make_model, make_trainer


def lora(tmp_path, **settings):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")
    config = peft.LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    return make_trainer(tmp_path, make_model(), peft_config=config, **settings)


# Rates in modules; numbers that layers pass to functions; an adapter's; noise that routers add.
RANDOM = {
    "gpt2": (lambda d, **s: make_trainer(d, make_architecture("gpt2", resid_pdrop=0.3), **s), r"resid_dropout=0\.3"),
    "qwen2": (lambda d, **s: make_trainer(d, make_model(attention_dropout=0.3), **s), r"attention_dropout=0\.3"),
    "opt": (lambda d, **s: make_trainer(d, make_architecture("opt", dropout=0.3), **s), r"dropout=0\.3"),
    "mixtral": (
        lambda d, **s: make_trainer(
            d, make_architecture("mixtral", router_jitter_noise=0.3), router_aux_loss_coef=0.0, **s
        ),
        r"jitter_noise=0\.3",
    ),
    "lora": (lora, r"lora_dropout.default=0\.3"),
}


def drift(trainer):
    """The largest |ratio - 1| of the first batch."""
    batch = first_batch(trainer)
    head = trainer._policy_head(batch)
    names = ("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask")
    ids, mask = (torch.cat([batch[name] for name in pair], 1) for pair in names)
    out = trainer.model(input_ids=ids, attention_mask=mask, policy_head=head)
    return (out["ratio"] - 1)[batch["loss_mask"]].abs().max().item()


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_that_is_on_in_training(tmp_path, name):
    make, rate = RANDOM[name]
    text = rf"noise is on in training \(.*{rate}.*\).*, set disable_dropout=True in ADaPTConfig"
    with pytest.warns(UserWarning, match=text) as found:
        trainer = make(tmp_path)
    ours = [warning for warning in found if "noise is on" in str(warning.message)]
    assert len(ours) == 1 and ours[0].filename == __file__.replace("test_said_once", "tiny_trainer")
    assert drift(trainer) > 1e-2
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "dropout or other noise|importance ratios")
        trainer = make(tmp_path, disable_dropout=True, max_steps=1)
        assert drift(trainer) < 1e-3
        trainer.train()


def test_noise_of_the_training_arguments_and_of_code_without_a_rate(tmp_path):
    with pytest.warns(UserWarning, match=r"\(neftune_noise_alpha=5\).*, leave neftune_noise_alpha out"):
        make_trainer(tmp_path, neftune_noise_alpha=5.0)
    model = make_model()
    model.model.norm.register_forward_hook(lambda module, _, out: torch.dropout(out, 0.3, module.training))
    with pytest.warns(UserWarning, match=r"\(in the code of the model\).*, set disable_dropout=True"):
        make_trainer(tmp_path, model)
    with pytest.warns(UserWarning, match=r"\(in the code of the model\).*disable_dropout does not reach it"):
        make_trainer(tmp_path, model, disable_dropout=True)
    silent = make_model()
    silent.unused = torch.nn.Dropout(0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "dropout or other noise")
        make_trainer(tmp_path, silent)


def test_the_weight_of_the_kl_term(tmp_path):
    text = r"no importance weight, which TRL's use_bias_correction_kl=True .*set use_bias_correction_kl=False"
    with pytest.warns(UserWarning, match=text) as found:
        config = make_config(tmp_path, beta=0.1)
    assert config.use_bias_correction_kl is False and sum("KL" in str(w.message) for w in found) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the KL term")
        assert make_config(tmp_path).use_bias_correction_kl is False, "without a KL term there is nothing to say"
        assert make_config(tmp_path, beta=0.1, use_bias_correction_kl=False).use_bias_correction_kl is False
    for beta in (0.0, 0.1):
        with pytest.raises(ValueError, match="does not honour use_bias_correction_kl=True: .*set it to False"):
            make_config(tmp_path, beta=beta, use_bias_correction_kl=True)
