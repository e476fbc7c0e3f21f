"""ModeBias: the gate as a logits processor of an unpatched model."""

import pytest
import torch
from goodness import assert_fits
from tiny_models import FAST, SLOW, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
LONG = ak.Modes(fast=(7, FAST, 9), slow=(7, SLOW))
WIDTH = 6


def generate(ids, processor, **arguments):
    arguments = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, **arguments}
    return shared("llama").generate(ids, logits_processor=[processor], **arguments)[:, ids.shape[1] :]


def patched(ids, modes, **arguments):
    with ak.patched(shared("llama"), modes) as model:
        arguments = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, **arguments}
        return model.generate(ids, **arguments)[:, ids.shape[1] :]


@pytest.mark.parametrize("modes", [MODES, LONG, ak.Modes(think=FAST, answer=None)], ids=["single", "multi", "other"])
@pytest.mark.parametrize("bias", [-30.0, 0.0, 30.0])
def test_greedy_tokens_are_the_patched_models(modes, bias):
    ids = prompts(3, WIDTH)
    processor = ak.ModeBias(modes, bias, prompt_length=WIDTH)
    assert torch.equal(generate(ids, processor), patched(ids, modes, mode_bias=bias))


@pytest.mark.parametrize("modes", [MODES, LONG], ids=["single", "multi"])
def test_a_named_mode_is_forced_row_by_row(modes):
    ids = prompts(3, WIDTH)
    names = ["slow", "fast", "auto"]
    processor = ak.ModeBias(modes, mode=names, prompt_length=WIDTH)
    assert torch.equal(generate(ids, processor), patched(ids, modes, mode=names))


def test_sampled_modes_follow_the_bias():
    ids = prompts(1, WIDTH).expand(4000, -1)
    torch.manual_seed(0)
    processor = ak.ModeBias(MODES, {"slow": 0.8}, prompt_length=WIDTH)
    drawn = generate(ids, processor, do_sample=True, top_k=0, temperature=0.7, max_new_tokens=1)[:, 0]
    with torch.no_grad():
        logits = shared("llama")(ids[:1]).logits[0, -1].double()[[FAST, SLOW]]
    expected = torch.softmax((logits + torch.tensor([0.0, 0.8])) / 0.7, -1)
    assert set(drawn.tolist()) == {FAST, SLOW}
    assert_fits((drawn == SLOW).long(), expected)


def test_one_processor_serves_call_after_call_and_every_beam():
    ids = prompts(2, WIDTH)
    processor = ak.ModeBias(MODES, torch.tensor([40.0, -40.0]), prompt_length=WIDTH)
    for _ in range(2):
        assert generate(ids, processor)[:, 0].tolist() == [FAST, SLOW]
        assert generate(ids, processor, num_beams=3)[:, 0].tolist() == [FAST, SLOW]


def test_without_restriction_only_mode_logits_move():
    scores = torch.randn(2, 97)
    processor = ak.ModeBias(MODES, 2.0, prompt_length=WIDTH, only_modes=False)
    moved = processor(prompts(2, WIDTH), scores) - scores
    assert torch.allclose(moved[:, FAST], torch.tensor(2.0))
    assert moved.abs().sum(1).allclose(torch.tensor(2.0))
    later = prompts(2, WIDTH + 1)
    assert torch.equal(processor(later, scores), scores)


def test_masked_logits_stay_a_distribution():
    scores = torch.full((1, 97), float("-inf"))
    scores[0, 3] = float("nan")
    forced = ak.ModeBias(MODES, mode="slow", prompt_length=WIDTH)(prompts(1, WIDTH), scores)
    assert torch.softmax(forced, -1)[0, SLOW] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"modes": {"fast": 5}}, TypeError, "modes must be"),
        ({"prompt_length": -1}, ValueError, "prompt_length"),
        ({"prompt_length": True}, ValueError, "prompt_length"),
        ({"mode": "balanced"}, ValueError, "balanced"),
        ({"mode": "medium"}, ValueError, "medium"),
        ({"mode": "slow", "mode_bias": 1.0}, ValueError, "leave out mode_bias"),
        ({"mode": "slow", "only_modes": False}, ValueError, "only_modes"),
        ({"mode_bias": {"medium": 1.0}}, ValueError, "medium"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    arguments = {"modes": MODES, "prompt_length": WIDTH, **arguments}
    with pytest.raises(error, match=text):
        ak.ModeBias(arguments.pop("modes"), **arguments)


def test_what_does_not_fit_the_batch_is_refused():
    ids, scores = prompts(3, WIDTH), torch.randn(3, 97)
    with pytest.raises(ValueError, match="prompt_length=7"):
        ak.ModeBias(MODES, 1.0, prompt_length=7)(ids, scores)
    with pytest.raises(ValueError, match="mode_bias"):
        ak.ModeBias(MODES, torch.zeros(2), prompt_length=WIDTH)(ids, scores)
