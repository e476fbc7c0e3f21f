"""No call of ours uses a name that the installed transformers has deprecated, in warnings or in its log."""

import warnings

import pytest
import torch
from parity import CACHE, GREEDY, MODES, WIDTH, padded_inputs
from recorders import RowLengths
from tiny_models import EOS, prompts, shared
from transformers.utils import generic

import adapt_kernels as ak

ENDS = {"eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": [RowLengths(WIDTH, [3, 8, 5])]}


@pytest.fixture
def complaints(monkeypatch):
    """What transformers logs about its names; its own logger says each thing once per process only."""
    logged = []
    monkeypatch.setattr(generic.logger, "warning_once", logged.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        yield logged


class TestNames:
    @pytest.mark.parametrize("architecture", ["llama", "mamba", "qwen3_next", "deepseek_v3", "recurrent_gemma"])
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"return_dict_in_generate": True},
            {"return_dict_in_generate": True, **ENDS},
            {"use_cache": False},
            {"num_beams": 2},
        ],
        ids=["plain", "rich", "rows-leave", "no-cache", "original"],
    )
    def test_generate(self, architecture, arguments, complaints):
        with ak.patched(shared(architecture), MODES) as model:
            out = model.generate(**{**padded_inputs(), **GREEDY, **arguments})
        if "stopping_criteria" in arguments:
            assert len(out[CACHE].layers)  # looked at, so computed again
        assert complaints == []

    def test_shared_prompts_and_continuation(self, complaints):
        arguments = {**GREEDY, "return_dict_in_generate": True, "kv_layout": "shared"}
        with ak.patched(shared("llama"), MODES) as model:
            first = model.generate(prompts(2, WIDTH).repeat(2, 1), **arguments)
            longer = torch.cat([first.sequences, prompts(4, 3)], 1)
            model.generate(longer, **{CACHE: first[CACHE]}, **GREEDY)
        assert complaints == []
