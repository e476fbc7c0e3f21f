"""The fuzzer is wide enough: with a mend taken back, its fixed cases find the fault again."""

import pytest
from fuzz import search
from test_fuzz import fixed_seeds

from adapt_kernels.hf.call import plan
from adapt_kernels.hf.call.generate import ModeGenerate
from adapt_kernels.hf.kv import attention, batch, cached, whole_batch
from adapt_kernels.program.slots import Slots


def found(architecture: str) -> str | None:
    """The first thing that goes wrong in an architecture's fixed cases."""
    reports = (report for report, _ in search([architecture], fixed_seeds(architecture)))
    return next((report.wrong[0] for report in reports if report.wrong), None)


def trust_every_model(monkeypatch):
    """Shared prompts for any model whose keys carry a mark."""
    monkeypatch.setattr(attention, "_reading_fault", lambda *args: None)
    monkeypatch.setattr(attention.ReadingProof, "compare", lambda self, layer, query, *args: args[-1]())
    monkeypatch.setattr(attention.ReadingProof, "finish", lambda self: None)
    monkeypatch.setattr(attention.KeyMarks, "all_read", lambda self: True)


def rename_the_implementation(monkeypatch):
    monkeypatch.setattr(attention._Alias, "__eq__", lambda self, other: attention._PREFIX + str(self) == other)


def expect_a_cache(monkeypatch):
    prefill = batch.BranchedBatch.prefill

    def prefill_with_layers(self, input_ids):
        outputs = prefill(self, input_ids)
        len(batch.cache_of(outputs).layers)
        return outputs

    monkeypatch.setattr(batch.BranchedBatch, "prefill", prefill_with_layers)


def expect_a_cache_object(monkeypatch):
    for module in (batch, whole_batch):
        monkeypatch.setattr(module, "cached_tokens", lambda holder: int(cached.cache_of(holder).get_seq_length()))


def expect_a_pad_token(monkeypatch):
    spread = Slots.spread

    def spread_numbers(self, per_slot, elsewhere):
        if not self.in_order and elsewhere is None:
            raise TypeError("can't assign a NoneType to a torch.LongTensor")
        return spread(self, per_slot, elsewhere)

    monkeypatch.setattr(Slots, "spread", spread_numbers)


def ignore_random_numbers(monkeypatch):
    monkeypatch.setattr(batch, "drawn_from", lambda *args: False)


def ignore_hooks(monkeypatch):
    monkeypatch.setattr(plan, "row_hook_reason", lambda *args: None)


def hide_the_signature(monkeypatch):
    def assisted(self, input_ids, *args, **kwargs):
        return self.original_class._assisted_decoding(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(ModeGenerate, "_assisted_decoding", assisted, raising=False)


REVERTED = (
    (trust_every_model, "diffllama"),
    (rename_the_implementation, "deepseek_v32"),
    (expect_a_cache, "openai-gpt"),
    (expect_a_cache_object, "rwkv"),
    (expect_a_pad_token, "gpt2"),
    (ignore_hooks, "qwen3"),
    (hide_the_signature, "t5"),
)
REVERTED_FOR_SIBLINGS = (
    (trust_every_model, "doge"),
    (rename_the_implementation, "axk2"),
    (rename_the_implementation, "hy_v4"),
    (expect_a_cache, "bert"),
    (expect_a_cache_object, "xlnet"),
    (expect_a_pad_token, "falcon_h1"),
    (ignore_random_numbers, "phimoe"),
    (ignore_hooks, "llama"),
    (hide_the_signature, "bart"),
)


@pytest.mark.parametrize(
    ("revert", "architecture"),
    [*REVERTED, *(pytest.param(*each, marks=pytest.mark.full) for each in REVERTED_FOR_SIBLINGS)],
)
def test_a_fault_is_found_again(revert, architecture, monkeypatch):
    revert(monkeypatch)
    assert found(architecture) is not None
