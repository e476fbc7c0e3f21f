"""Scores, attentions and the cache of a rich output, against the unpatched model's."""

import pytest
import torch
from parity import CACHE, GREEDY, WIDTH, assert_same, both, cached, padded_inputs
from recorders import RowLengths
from tiny_models import EOS, build, prompts, shared
from transformers import DynamicCache


class TestRichOutput:
    ASKED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")

    @pytest.mark.parametrize("asked", [*((name,) for name in ASKED), ASKED, ()], ids="+".join)
    def test_fields(self, asked):
        model = build("qwen2", attn_implementation="eager")
        arguments = {**padded_inputs(), **GREEDY, "return_dict_in_generate": True, "repetition_penalty": 1.2}
        plan = "sample_only" if asked else "full"
        theirs, ours = both(model, lambda m: m.generate(**arguments, **dict.fromkeys(asked, True)), plan)
        assert set(theirs.keys()) <= set(ours.keys())
        for field in ("sequences", "scores", "logits", "attentions", "hidden_states"):
            assert_same(getattr(ours, field), getattr(theirs, field))

    def test_returned_cache(self):
        arguments = {**padded_inputs(), **GREEDY, "return_dict_in_generate": True}
        theirs, ours = both(shared("llama"), lambda m: m.generate(**arguments))
        assert type(ours[CACHE]) is DynamicCache
        for ours_kv, theirs_kv in zip(cached(ours[CACHE]), cached(theirs[CACHE]), strict=True):
            assert_same(ours_kv, theirs_kv)

    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3_next", "mamba", "bloom"])
    @pytest.mark.parametrize("embedded", [False, True])
    def test_returned_cache_of_rows_that_left(self, architecture, embedded):
        # Including what Hugging Face computes from pad after a row's end; computed again, so up to rounding.
        model, inputs = shared(architecture), padded_inputs()
        if embedded:
            inputs["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
        ends = {"eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": [RowLengths(WIDTH, [3, 8, 5])]}
        arguments = {**inputs, **GREEDY, "return_dict_in_generate": True, **ends}
        theirs, ours = both(model, lambda m: m.generate(**arguments))
        assert isinstance(ours[CACHE], DynamicCache)
        for ours_layer, theirs_layer in zip(ours[CACHE].layers, theirs[CACHE].layers, strict=True):
            assert type(ours_layer) is type(theirs_layer)
            states = {k: v for k, v in vars(theirs_layer).items() if torch.is_tensor(v) or isinstance(v, dict)}
            assert states
            for name, expected in states.items():
                ours_state = getattr(ours_layer, name)
                if name in ("keys", "values"):
                    # What stands at padding is never read.
                    real = torch.nn.functional.pad(inputs["attention_mask"], (0, expected.shape[2]), value=1)
                    real = real[:, WIDTH + 7 - expected.shape[2] : WIDTH + 7, None].unsqueeze(1)
                    ours_state, expected = ours_state * real, expected * real
                torch.testing.assert_close(ours_state, expected, rtol=1e-4, atol=1e-4)

    def test_per_step_outputs_need_return_dict(self):
        out = both(shared("llama"), lambda m: m.generate(prompts(2, WIDTH), output_scores=True, **GREEDY))
        assert torch.equal(*out)
