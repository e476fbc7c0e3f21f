import sys
from enum import Enum, auto
from types import ModuleType, SimpleNamespace

import pytest

_OLDER = "vllm.v1.sample.logits_processor.interface"
_NEWER = "vllm.v1.worker.gpu.sample.logits_processor.interface"


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


def _stand_in(name: str, **names) -> dict[str, ModuleType]:
    """A module of that dotted name, and the packages above it."""
    parts, found = name.split("."), {}
    for length in range(1, len(parts) + 1):
        found[".".join(parts[:length])] = ModuleType(".".join(parts[:length]))
    found[name].__dict__.update(names)
    return found


@pytest.fixture
def processor(monkeypatch):
    """`adapt_kernels.vllm.processor` on stand-ins for the few names of vLLM that it touches."""
    modules = {
        **_stand_in(_OLDER, LogitsProcessor=type("V1", (), {}), MoveDirectionality=MoveDirectionality),
        **_stand_in(_NEWER, LogitsProcessor=type("V2", (), {})),
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
