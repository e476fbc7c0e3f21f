"""Under `kv_keep` logits equal those of a full cache with an explicit mask of the kept positions."""

import pytest
import small_models
import torch
from keep_reference import ShownLogits, Simulated, replayed, score_of
from tiny_models import FAST, SLOW, left_padded, prompts, shared

import adapt_kernels as ak
from adapt_kernels.hf.kv.kept_batch import KeptBatch

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW, LENGTHS, SEED = 8, 22, [8, 3, 6], 11
DEFAULT = ("llama", "gemma3_text", "gpt2", "gpt_oss", "deepseek_v3", "qwen3_next")
ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "gpt2", "gpt_neox", "opt"),
    *("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba", "falcon", "lfm2"),
)
# Of the others, built small by rule.
MORE = ("cohere", "gemma", "glm4", "helium", "nemotron", "olmo3", "phi", "smollm3", "stablelm", "starcoder2")
KEEPS = {
    "recent": ak.KeepKV(9, 6, 2, "recent", sinks=2),
    "random": ak.KeepKV(8, 0.5, 3, "random"),
    "all": ak.KeepKV(14, 0.6, 3, "random", count="all"),
}
# In float32: the order of additions differs.
TOLERANCE = 2e-5


def in_default(name):
    return name if name in DEFAULT else pytest.param(name, marks=pytest.mark.full)


def inputs():
    return left_padded(prompts(3, WIDTH), LENGTHS)


def kept_call(model, settings, **arguments):
    """(output, [rows, new, V] logits)"""
    call = {**inputs(), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "seed": SEED}
    with ak.patched(model, MODES), ShownLogits(model, 3) as shown:
        out = model.generate(**call, kv_keep=settings, return_dict_in_generate=True, **arguments)
    return out, torch.stack(shown.steps, 1)


def simulated(settings):
    seeds = [ak.row_seed(SEED, row) for row in range(3)]
    start = 0 if settings.count == "all" else WIDTH
    return [
        Simulated(settings, WIDTH, WIDTH - length, score_of(settings.score, seed, start))
        for length, seed in zip(LENGTHS, seeds, strict=True)
    ]


def difference(model, settings, **arguments) -> float:
    out, logits = kept_call(model, settings, **arguments)
    rows = simulated(settings)
    expected = replayed(model, inputs(), out.sequences, rows)
    assert out.stats.kv_evictions == rows[0].evictions >= 2
    assert out.stats.kv_held_peak == settings.budget + 1 and out.stats.kv_keep_reason == ""
    return float((logits - expected).abs().max())


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("architecture", [in_default(name) for name in ARCHITECTURES])
def test_logits_equal_an_explicit_mask(architecture, keep):
    assert difference(shared(architecture), KEEPS[keep]) <= TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize("architecture", MORE)
def test_more_architectures(architecture):
    assert difference(small_models.shared(architecture), KEEPS["all"]) <= TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_prompts_stored_once(architecture):
    assert difference(shared(architecture), KEEPS["random"], kv_layout="shared") <= TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_logits_that_are_asked_for(architecture):
    model, settings = shared(architecture), KEEPS["random"]
    given = {name: tensor.repeat_interleave(2, 0) for name, tensor in inputs().items()}
    call = {**inputs(), "max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "seed": SEED}
    call |= {"num_return_sequences": 2, "mode": "balanced", "return_dict_in_generate": True, "top_k": 0}
    with ak.patched(model, MODES):
        quiet = model.generate(**call, kv_keep=settings)
        shown = model.generate(**call, kv_keep=settings, output_logits=True, output_scores=True)
    rows = [
        Simulated(settings, WIDTH, WIDTH - LENGTHS[row // 2], score_of("random", ak.row_seed(SEED, row), WIDTH))
        for row in range(6)
    ]
    expected = replayed(model, given, shown.sequences, rows)
    assert torch.equal(shown.sequences, quiet.sequences) and shown.stats.kv_evictions == rows[0].evictions
    assert float((torch.stack(shown.logits, 1) - expected).abs().max()) <= TOLERANCE
    assert all(map(torch.equal, shown.scores[1:], shown.logits[1:]))  # the first ones are those of the gate
    assert (shown.scores[0] > -torch.inf).sum(1).tolist() == [2] * 6


@pytest.mark.parametrize("ends", [None, 4])
def test_logits_under_a_budget_that_is_not_reached(ends):
    model, asked = shared("llama"), {"output_logits": True, "output_scores": True}
    call = {**inputs(), "max_new_tokens": NEW, "do_sample": True, "seed": SEED, "num_return_sequences": 2, **asked}
    call |= {"return_dict_in_generate": True, "pad_token_id": 0, "eos_token_id": None}
    with ak.patched(model, MODES):
        if ends is not None:
            call["eos_token_id"] = model.generate(**call).sequences[:, WIDTH + ends].tolist()
        plain, kept = (model.generate(**call, **more) for more in ({}, {"kv_keep": ak.KeepKV(NEW - 2, 0.5, 2)}))
        if ends is None:
            kept = model.generate(**call, kv_keep=ak.KeepKV(NEW, 0.5, 2))
    assert kept.stats.kv_evictions == 0 and torch.equal(kept.sequences, plain.sequences)
    assert all(map(torch.equal, kept.logits, plain.logits)) and all(map(torch.equal, kept.scores, plain.scores))


def test_a_mask_that_is_not_gathered_is_seen(monkeypatch):
    def whole_mask(batch, stores):
        return batch.kwargs["attention_mask"]

    monkeypatch.setattr(KeptBatch, "_next_mask", whole_mask)
    assert difference(shared("llama"), KEEPS["all"]) > 1000 * TOLERANCE


@pytest.mark.parametrize("architecture", [in_default(name) for name in (*ARCHITECTURES, *MORE)])
def test_budgets_that_are_not_reached_change_no_bit(architecture):
    model = small_models.shared(architecture) if architecture in MORE else shared(architecture)
    call = {**inputs(), "max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "seed": SEED}
    with ak.patched(model, MODES):
        with ShownLogits(model, 3) as plain_steps:
            plain = model.generate(**call)
        for settings in (ak.KeepKV(NEW - 1, 0.5, 2), ak.KeepKV(4, 1.0, 2, "key_norm")):
            with ShownLogits(model, 3) as steps:
                out = model.generate(**call, kv_keep=settings, return_dict_in_generate=True)
            assert torch.equal(out.sequences, plain) and out.stats.kv_evictions == 0
            assert all(map(torch.equal, steps.steps, plain_steps.steps))
