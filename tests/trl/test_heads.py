"""The loss computes softcap * tanh(scale * (W h + b) / softcap): a model whose logits are that is served, others not.

Also: what a policy head leaves of the model, its copies and its pickles.
"""

import copy
import io
import pickle

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import WORDS, first_batch, make_architecture, make_model, make_trainer, small_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import adapt_kernels as ak
from adapt_kernels.trl.head_check import check_head, logit_settings
from adapt_kernels.trl.policy_head import LogprobHead, add_policy_head

REFUSED = "ADaPTTrainer computes softcap|cannot take the place of|no output embeddings|does not tell its head"
# Type -> what bends its logits, or what is below its head; False: refused.
SERVED = {
    "inkling_text": {"logits_mup_width_multiplier": 3.0, "unpadded_vocab_size": 29},
    "llama4_text": {},
    "granite": {"logits_scaling": 0.2},
    "hyperclovax": {"logits_scaling": 0.2},
    "cohere": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 2.0},
    "recurrent_gemma": {"logits_soft_cap": 2.0},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "opt": {"word_embed_proj_dim": 8, "hidden_size": 16},
    "gptj": {},
    "bert": False,
    "modernbert-decoder": False,
    "dory": False,
}


def built(name, given):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    extra = {
        "inkling_text": {"swa_head_dim": 8, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1},
        "recurrent_gemma": {"lru_width": 16, "block_types": ["recurrent", "attention"], "attention_window_size": 8},
        "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1},
        "bert": {"is_decoder": True},
        "modernbert-decoder": {"bos_token_id": 2},
        "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 32},
    }
    return make_architecture(name, **extra.get(name, {}), **(given or {}))


def assert_equal_or_refused(model):
    """Whether it was served; then by logits that check_head has nothing to do with."""
    model.eval()
    settings = logit_settings(model.config, False)
    try:
        add_policy_head(model)
        check_head(model, settings)
    except ValueError as error:
        assert any(text in str(error) for text in REFUSED.split("|")), error
        return False
    ids = torch.randint(4, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.double()[:, 2:-1].log_softmax(-1)
        expected = expected.gather(2, ids[:, 3:, None])[..., 0]
        head = LogprobHead(ids[:, 3:], mask[:, 3:] > 0, 1.0, settings)
        found = model(input_ids=ids, attention_mask=mask, policy_head=head)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)  # float32 against float64
    return True


@pytest.mark.parametrize("name", SERVED)
def test_a_head_is_equal_or_refused(name):
    model = built(name, SERVED[name])
    assert assert_equal_or_refused(model) == (SERVED[name] is not False)


@pytest.mark.full
def test_every_architecture_of_transformers_is_equal_or_refused():
    served, refused = [], []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            with torch.device("meta"):
                outline = AutoModelForCausalLM.from_config(small_config(name))
            if sum(parameter.numel() for parameter in outline.parameters()) > 3e6:
                continue
            model = make_architecture(name)
            model.eval()(input_ids=torch.arange(4, 9)[None])
        except Exception:  # not every config takes these sizes, nor every model text alone
            continue
        (served if assert_equal_or_refused(model) else refused).append(name)
    assert len(served) >= 80 and {"bert", "electra"} <= set(refused), (served, refused)


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_a_setting_that_is_read_wrong_is_found(name, std):
    """A percent of the scale; a bend, also at weights as small as a model's first ones."""
    model = make_architecture(name)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(std)
    add_policy_head(model)
    settings = logit_settings(model.config, False)
    check_head(model, settings)
    for wrong in ({"logit_scale": 1.01 * settings["logit_scale"]}, {"softcap": 15.0}):
        with pytest.raises(ValueError, match=r"differ from those of its head by up to [\d.e-]+, and are [\d.e-]+"):
            check_head(model, {**settings, **wrong})


def test_trainers_check_it_in_any_precision(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = make_architecture("gemma2", final_logit_softcapping=20.0).to(dtype)
        training = {name: module.training for name, module in model.named_modules()}
        make_trainer(tmp_path, model)
        assert training == {name: module.training for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="the logits of BertLMHeadModel differ from those of its head"):
        make_trainer(tmp_path, built("bert", None))
    trainer = make_trainer(tmp_path, built("llama4_text", {}), router_aux_loss_coef=0.0, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["modes/ratio"] == pytest.approx(1, abs=1e-4)


def doubled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)


def policy_and_copies(tmp_path, source):
    """A model with a policy head, and a copy."""
    if source == "bare":
        model = make_model(tie_word_embeddings=False)
        add_policy_head(model)
    else:
        settings = {"bf16": "bf16" in source, "cast_lm_head_to_fp32": "cast" in source, "max_steps": 1}
        trainer = make_trainer(tmp_path, make_model(tie_word_embeddings=False), **settings)
        if "trained" in source:
            trainer.train()
        model = trainer.model
    return model.eval(), copy.deepcopy(model)


@pytest.mark.parametrize("source", ["bare", "trainer", "trained", "bf16 trained", "bf16 cast"])
def test_a_copy_computes_with_its_own_weights(tmp_path, source):
    model, twin = policy_and_copies(tmp_path, source)
    ids = torch.arange(4, 12)[None]
    head = LogprobHead(ids[:, 3:], torch.ones(1, 5, dtype=torch.bool), 1.0, logit_settings(model.config, False))
    with torch.no_grad():
        before = model(input_ids=ids).logits, model(input_ids=ids, policy_head=head)
        doubled(model)
        assert torch.equal(twin(input_ids=ids).logits, before[0])
        assert torch.equal(twin(input_ids=ids, policy_head=head), before[1])
        assert not torch.equal(model(input_ids=ids).logits, before[0])
    loaded = pickle.load(io.BytesIO(pickle.dumps(twin)))
    doubled(twin)
    with torch.no_grad():
        # A pickle is the model without the head, nor with accelerate's autocast to bfloat16.
        rounding = 0.1 if "bf16" in source else 0.0
        torch.testing.assert_close(loaded(input_ids=ids).logits, before[0], rtol=0, atol=rounding)


def test_a_second_trainer_on_the_same_model(tmp_path):
    model = make_model()
    first = make_trainer(tmp_path, model)
    first.train()
    again = make_trainer(tmp_path, model)
    batch = first_batch(again)
    assert again.compute_loss(again.model, batch).isfinite()
    assert again._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)
    ak.unpatch(model)
    assert model(input_ids=torch.arange(4, 9)[None]).logits.shape == (1, 5, len(WORDS))


def test_models_without_a_head_or_with_an_adapter_on_it():
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")
    with pytest.raises(ValueError, match="Qwen2Model has no output embeddings to train"):
        add_policy_head(make_model().model)
    tuned = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"carry an adapter of their own \(Linear\).*modules_to_save"):
        add_policy_head(tuned.get_base_model())
