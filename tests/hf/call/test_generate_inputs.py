"""Every way to give prompts and settings to generate, against the unpatched model."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from parity import GREEDY, MODES, NEW, WIDTH, both, padded_inputs
from tiny_models import PAD, build, prompts, shared
from transformers import GenerationConfig, GenerationMixin

import adapt_kernels as ak


class TestInputs:
    @pytest.mark.parametrize("with_ids", [False, True])
    @pytest.mark.parametrize("samples", [1, 2])
    def test_inputs_embeds(self, with_ids, samples):
        model, inputs = shared("llama"), padded_inputs()
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
        ids = {"input_ids": inputs["input_ids"]} if with_ids else {}
        sampling = {"do_sample": True, "top_k": 1} if samples > 1 else {}
        unpatched, patched = both(
            model,
            lambda m: m.generate(
                inputs_embeds=embeds,
                attention_mask=inputs["attention_mask"],
                num_return_sequences=samples,
                **{**GREEDY, **sampling},
                **ids,
            ),
        )
        assert torch.equal(unpatched, patched)

    @pytest.mark.parametrize("with_ids", [False, True])
    def test_inputs_embeds_with_a_mode(self, with_ids):
        model, ids = shared("llama"), prompts(3, WIDTH)
        embeds = model.get_input_embeddings()(ids).detach()
        arguments = {**GREEDY, "mode": "slow", "return_dict_in_generate": True}
        with ak.patched(model, MODES):
            by_ids = model.generate(ids, **arguments)
            given = {"input_ids": ids} if with_ids else {}
            by_embeds = model.generate(inputs_embeds=embeds, **given, **arguments)
        assert torch.equal(by_embeds.sequences[:, -NEW:], by_ids.sequences[:, -NEW:])
        assert by_embeds.modes.tolist() == [1, 1, 1] and by_embeds.stats.prefill_tokens == 3 * WIDTH

    def test_positional_and_config_arguments(self):
        config = GenerationConfig(**GREEDY, pad_token_id=PAD)
        unpatched, patched = both(shared("llama"), lambda m: m.generate(prompts(3, WIDTH), config))
        assert torch.equal(unpatched, patched)
        unpatched, patched = both(
            shared("llama"), lambda m: m.generate(inputs=prompts(3, WIDTH), generation_config=config)
        )
        assert torch.equal(unpatched, patched)

    def test_settings_are_merged_once(self, monkeypatch):
        merges, own = [], GenerationMixin._prepare_generation_config

        def counted(*args, **kwargs):
            merges.append(kwargs)
            return own(*args, **kwargs)

        monkeypatch.setattr(GenerationMixin, "_prepare_generation_config", counted)
        config = GenerationConfig(**GREEDY, pad_token_id=PAD)
        before = config.to_dict()
        with ak.patched(shared("llama"), MODES) as model:
            tokens = model.generate(prompts(3, WIDTH), config, max_new_tokens=2, mode="slow")
        assert tokens.shape[1] == WIDTH + 2 and len(merges) == 1
        assert config.to_dict() == before

    def test_num_return_sequences_from_the_models_own_config(self):
        model = build("llama")
        model.generation_config.num_return_sequences, model.generation_config.do_sample = 3, True
        with ak.patched(model, MODES):
            out = model.generate(prompts(2, WIDTH), max_new_tokens=2, mode="balanced", return_dict_in_generate=True)
        assert out.modes.tolist() == [0, 0, 1] * 2

    def test_token_healing(self):
        tokenizer = char_tokenizer()
        ids = tokenizer(["xyza", "kmnd"], return_tensors="pt").input_ids
        arguments = {"token_healing": True, "tokenizer": tokenizer, **GREEDY}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(ids, **arguments))
        assert torch.equal(unpatched, patched)
        assert not torch.equal(unpatched[:, : ids.shape[1]], ids), "healing must change a prompt"
