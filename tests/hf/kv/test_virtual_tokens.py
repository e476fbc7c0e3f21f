"""Positions in the cache that the attention mask does not have."""

import pytest
import torch
from parity import CACHE, GREEDY, MODES
from recorders import RowLengths
from tiny_models import EOS, build, left_padded, prompts

import adapt_kernels as ak
from adapt_kernels.hf.kv import layouts

PROMPTS = left_padded(prompts(3, 8), [8, 3, 6])


@pytest.fixture(autouse=True)
def everything_is_worth_sharing(monkeypatch):
    monkeypatch.setattr(layouts, "_WORTH_SHARING", 0)


def call(samples=1, **more):
    ends = [RowLengths(8, [n for n in (3, 9, 5) for _ in range(samples)])]
    drawn = {"do_sample": True, "top_k": 1, "num_return_sequences": samples}
    return {**PROMPTS, **GREEDY, "max_new_tokens": 9, **drawn, "stopping_criteria": ends, "eos_token_id": EOS} | more


def prompt_tuning(peft):
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)


def prefix_tuning(peft):
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)


def p_tuning(peft):
    return peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("method", [prompt_tuning, prefix_tuning, p_tuning])
def test_peft(method, samples):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(build("llama"), method(peft)).eval()
    try:
        unpatched = model.generate(**call(samples))
    except (AttributeError, TypeError, ValueError) as error:
        pytest.skip(f"this peft does not generate with this transformers: {error!r}")
    with ak.patched(model, MODES):
        assert torch.equal(model.generate(**call(samples)), unpatched)
        assert ak.last_stats(model).plan == "sample_only"


class _SoftPrompt(torch.nn.Module):
    """Puts learned vectors before every prompt, out of anybody's sight."""

    def __init__(self, model, count=5):
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.randn(count, 32, generator=torch.Generator().manual_seed(1)))
        self.model = model

    def install(self, body):
        plain = body.forward

        @ak.row_independent
        def forward(input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kwargs):
            cache = kwargs[CACHE]
            embeds = body.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            rows, count = len(embeds), len(self.vectors)
            if cache.get_seq_length() == 0:
                embeds = torch.cat([self.vectors.expand(rows, -1, -1), embeds], 1)
            if attention_mask is not None:
                attention_mask = torch.cat([attention_mask.new_ones(rows, count), attention_mask], 1)
            return plain(attention_mask=attention_mask, inputs_embeds=embeds, **kwargs)

        body.forward = forward


def soft_prompted():
    model = build("llama")
    _SoftPrompt(model).install(model.model)
    return model


@pytest.mark.parametrize("samples", [1, 3])
def test_a_forward_that_adds_positions(samples):
    model = soft_prompted()
    unpatched = model.generate(**call(samples))
    with ak.patched(model, MODES):
        assert torch.equal(model.generate(**call(samples)), unpatched)
        with pytest.raises(ValueError, match="cannot serve this call: the cache holds other positions .*virtual"):
            model.generate(**call(samples), kv_layout="shared")


def test_the_returned_cache_has_them():
    model, arguments = soft_prompted(), call(2, return_dict_in_generate=True)
    theirs = model.generate(**arguments)
    with ak.patched(model, MODES):
        ours = model.generate(**arguments)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert ours[CACHE].get_seq_length() == theirs[CACHE].get_seq_length() == 5 + ours.sequences.shape[1] - 1
    for layer, their_layer in zip(ours[CACHE].layers, theirs[CACHE].layers, strict=True):
        real = torch.nn.functional.pad(PROMPTS["attention_mask"].repeat_interleave(2, 0), (5, 8), value=1)
        for name in ("keys", "values"):
            pair = [getattr(each, name) * real[:, None, :, None] for each in (layer, their_layer)]
            torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


def test_rows_leave_where_no_cache_is_returned():
    model = soft_prompted()
    with ak.patched(model, MODES):
        model.generate(**call(2))
        stats = ak.last_stats(model)
    assert stats.plan == "full" and stats.row_steps < stats.row_steps_padded
