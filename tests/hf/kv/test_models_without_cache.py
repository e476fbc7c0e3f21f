"""Models whose output carries no cache, or one that is no `Cache`; calls without pad and EOS."""

import math

import pytest
import torch
from parity import GREEDY, MODES, both
from tiny_models import EOS, PAD, VOCAB, build, left_padded, prompts
from transformers import AutoConfig, AutoModelForCausalLM

import adapt_kernels as ak

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES = {
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "roberta": _BERT,  # an encoder with a head: it does not return what it is given
    "bert": _BERT,
}
STATES_ELSEWHERE = ("openai-gpt", "rwkv", "xlnet")


def model_of(name):
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=VOCAB, **ends, **SIZES[name]))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=math.sqrt(1.5 / parameter.shape[-1]))
    return model.eval()


def call(**more):
    return {"input_ids": prompts(3, 6)[[0, 1, 0, 2]], **GREEDY, "max_new_tokens": 6} | more


@pytest.mark.parametrize(
    "more",
    [{}, {"return_dict_in_generate": True}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}],
    ids=["plain", "dict", "samples"],
)
@pytest.mark.parametrize("name", SIZES)
def test_tokens_equal_the_unpatched_models(name, more):
    model = model_of(name)
    with ak.patched(model, MODES):
        for _ in range(2):
            out = model.generate(**call(**more))
            assert ak.last_stats(model).plan == ("sample_only" if name in STATES_ELSEWHERE else "full")
    expected = model.generate(**call(**more))
    sequences = [getattr(result, "sequences", result) for result in (out, expected)]
    assert torch.equal(*sequences)


def test_the_prefill_is_done_again_once():
    model = model_of("openai-gpt")
    with ak.patched(model, MODES):
        counts = []
        for _ in range(2):
            model.generate(**call())
            counts.append(ak.last_stats(model).prefill_tokens)
    # 3 distinct prompts of 6 and all 4 rows; then all 4 rows.
    assert counts == [3 * 6 + 4 * 6, 4 * 6]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_checkpointing(architecture):
    no_dropout = (
        {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "summary_first_dropout": 0.0}
        if architecture == "gpt2"
        else {}
    )
    model = build(architecture, **no_dropout).train()
    model.gradient_checkpointing_enable()
    unpatched = model.generate(**call())
    with ak.patched(model, MODES):
        assert torch.equal(model.generate(**call()), unpatched)
        checkpointed = ak.last_stats(model)
        model.gradient_checkpointing_disable()
        model.eval().generate(**call())
        assert ak.last_stats(model).plan == "full"
    assert checkpointed.plan == "full" or "no cache" in checkpointed.reason


def test_training_that_draws_at_random_elsewhere_than_in_dropout():
    model = build("llama").train()
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    @ak.row_independent
    def noisy(hidden_states, *args, **kwargs):
        return plain(hidden_states + torch.rand_like(hidden_states), *args, **kwargs)

    attention.forward = noisy
    torch.manual_seed(3)
    unpatched = model.generate(**call())
    torch.manual_seed(3)
    with ak.patched(model, MODES):
        patched = model.generate(**call())
        assert ak.last_stats(model).plan == "sample_only"
        assert "draws random numbers for the whole batch" in ak.last_stats(model).reason
    assert torch.equal(patched, unpatched)


class TestNoPadAndNoEos:
    def model(self):
        model = build("llama", pad_token_id=None, eos_token_id=None)
        model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
        return model

    @pytest.mark.parametrize("order", [[0, 1, 0, 1], [0, 0, 1, 1], [2, 1, 0, 2], [0, 1, 2, 0]])
    @pytest.mark.parametrize("padded", [False, True])
    def test_interleaved_equal_prompts(self, order, padded):
        inputs = left_padded(prompts(3, 6), [6, 4, 5]) if padded else {"input_ids": prompts(3, 6)}
        inputs = {name: tensor[order] for name, tensor in inputs.items()}
        settings = {"max_new_tokens": 5, "do_sample": False}
        unpatched, patched = both(self.model(), lambda m: m.generate(**inputs, **settings))
        assert torch.equal(unpatched, patched)

    def test_modes_in_mixed_order(self):
        with ak.patched(self.model(), MODES) as model:
            out = model.generate(
                prompts(2, 6)[[0, 1, 0, 1]], mode=["fast", "slow", "slow", "fast"], max_new_tokens=4,
                return_dict_in_generate=True, return_logprobs=True,
            )  # fmt: skip
        assert out.modes.tolist() == [0, 1, 1, 0]
