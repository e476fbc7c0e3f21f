"""calibrate: the bias it finds gives what was asked for, and its interval covers what other prompts would give."""

import pytest
import torch
from tiny_models import FAST, SLOW, prompts, shared
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_kernels.hf import calibration

MODES = ak.Modes(fast=FAST, slow=SLOW)
THREE = ak.Modes(fast=FAST, slow=SLOW, tool=40)
SAMPLED = {"do_sample": True, "max_new_tokens": 6}


def expected_fast(model, ids, modes, bias, temperature):
    with torch.no_grad():
        z = model(ids).logits[:, -1].double()[:, list(modes.token_ids)]
    z[:, 0] += bias
    return torch.softmax(z / temperature, -1)[:, 0].mean().item()


@pytest.mark.parametrize("modes", [MODES, THREE], ids=["two", "three"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("target", [0.03, 0.5, 0.9])
def test_the_share_of_fast_rows_is_met(modes, temperature, target):
    ids = prompts(9, 6)
    with ak.patched(shared("llama"), modes) as model:
        found = ak.calibrate(model, ids, target_fast=target, temperature=temperature, batch_size=4, **SAMPLED)
    assert found.fast == pytest.approx(target, abs=1e-6) and found.tokens is None
    assert expected_fast(shared("llama"), ids, modes, found.bias, temperature) == pytest.approx(target, abs=1e-5)
    assert found.low <= found.bias <= found.high


def test_a_greedy_share_counts_prompts():
    ids = prompts(8, 6)
    with ak.patched(shared("llama"), MODES) as model:
        found = ak.calibrate(model, ids, target_fast=0.25, do_sample=False, max_new_tokens=2)
        out = model.generate(
            ids, mode_bias=found.bias + 1e-6, do_sample=False, max_new_tokens=2, return_dict_in_generate=True
        )
    assert (out.modes == 0).float().mean() == 0.25


@pytest.fixture(scope="module")
def shipped():
    folder = ar.checkpoint_path("sft")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    return ak.patch(model, ak.Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")), tokenizer


def batch(tokenizer, count, seed):
    texts = [problem.prompt for problem in ar.problems(count, seed=seed)]
    return tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)


def test_a_token_budget_holds_on_new_prompts(shipped):
    model, tokenizer = shipped
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 24}
    found = ak.calibrate(model, batch(tokenizer, 100, seed=1), target_tokens=6.0, samples=1, **settings)
    assert found.low < found.bias < found.high and found.tokens == pytest.approx(6.0, abs=1e-3)
    new = batch(tokenizer, 400, seed=2)
    out = model.generate(**new, mode_bias=found.bias, seed=3, return_dict_in_generate=True, **settings)
    standard_error = out.lengths.double().std() / 20
    assert abs(out.lengths.double().mean() - 6.0) < 5 * standard_error
    assert found.fast == pytest.approx((out.modes == 0).double().mean().item(), abs=0.15)


def test_lengths_count_what_each_row_made(shipped):
    model, tokenizer = shipped
    inputs = batch(tokenizer, 12, seed=5)
    out = model.generate(**inputs, do_sample=True, max_new_tokens=24, seed=1, return_dict_in_generate=True)
    new = out.sequences[:, inputs.input_ids.shape[1] :]
    for row, length in zip(new.tolist(), out.lengths.tolist(), strict=True):
        ends = [i for i, token in enumerate(row) if token == tokenizer.eos_token_id]
        assert length == (ends[0] + 1 if ends else len(row))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Log-odds ~ N(0, 2): the bias of half the rows fast is 0 by symmetry.
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(60):
        odds = 2 * torch.randn(60, generator=generator, dtype=torch.float64)
        log_p = torch.stack([odds.sigmoid(), (-odds).sigmoid()], 1).log()
        found = calibration._solve(log_p, None, 1.0, None, 0.5, 0.9, seed=trial)
        covered += found.low <= 0 <= found.high
    # 54 +- 2.3 of 60 at 90 %; four standard errors, and the bootstrap's own bias of a few per cent.
    assert 44 <= covered <= 60


def test_torch_generators_and_the_model_stay_as_they_were():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with ak.patched(shared("llama"), MODES) as model:
        first = ak.calibrate(model, prompts(3, 6), target_fast=0.4, **SAMPLED)
        again = ak.calibrate(model, {"input_ids": prompts(3, 6)}, target_fast=0.4, **SAMPLED)
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "one of target_tokens and target_fast"),
        ({"target_fast": 0.5, "target_tokens": 3}, ValueError, "one of target_tokens and target_fast"),
        ({"target_fast": 1.0}, ValueError, "inside"),
        ({"target_tokens": -1}, ValueError, "above 0"),
        ({"target_tokens": 0}, ValueError, "above 0"),
        ({"target_fast": 0.5, "confidence": 1.0}, ValueError, "confidence"),
        ({"target_fast": 0.5, "samples": 0}, ValueError, "samples"),
        ({"target_fast": 0.5, "batch_size": True}, ValueError, "batch_size"),
        ({"target_fast": 0.5, "inputs": ["text"]}, TypeError, "tokenizer"),
        ({"target_fast": 0.5, "inputs": torch.zeros(0, 3, dtype=torch.long)}, ValueError, "prompts >= 1"),
        ({"target_tokens": 1000.0}, ValueError, "target_tokens must lie in"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    arguments = {"inputs": prompts(2, 6), **arguments}
    with ak.patched(shared("llama"), MODES) as model, pytest.raises(error, match=text):
        ak.calibrate(model, **arguments, **SAMPLED)


def test_an_unpatched_model_is_refused():
    with pytest.raises(ValueError, match="not patched"):
        ak.calibrate(shared("llama"), prompts(2, 6), target_fast=0.5)
