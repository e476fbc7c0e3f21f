import sys
from types import SimpleNamespace

import pytest
from stand_ins import NEWER, OLDER, MoveDirectionality, stand_in


@pytest.fixture
def processor(monkeypatch):
    """`adapt_kernels.vllm.processor` on stand-ins for the few names of vLLM that it touches."""
    modules = {
        **stand_in("vllm.sampling_params", SamplingParams=None),
        **stand_in(OLDER, LogitsProcessor=type("V1", (), {}), MoveDirectionality=MoveDirectionality),
        **stand_in(NEWER, LogitsProcessor=type("V2", (), {})),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [each for each in sys.modules if each.startswith("adapt_kernels.vllm")]:
        monkeypatch.delitem(sys.modules, name)
    from adapt_kernels.vllm import processor as module

    yield module
    for name in [each for each in sys.modules if each.startswith("adapt_kernels.vllm")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def engine_config(monkeypatch, processor):
    """(served, drafts=0) -> a vLLM configuration of that served model."""

    def config(served, drafts=0, vocab_size=32):
        monkeypatch.setattr(processor, "served_model", lambda _: served)
        return SimpleNamespace(
            model_config=SimpleNamespace(get_vocab_size=lambda: vocab_size),
            parallel_config=SimpleNamespace(data_parallel_rank=0),
            speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
            instance_id="one",
        )

    return config
