"""out.forced says which tokens were written whatever the model gave, in every plan: nobody drew them."""

import pytest
import torch
from tiny_models import EOS, FAST, PAD, SLOW, prompts, shared

import adapt_kernels as ak

WIDTH, NEW, CAP = 6, 12, 5
CLOSING = (8, 9)
ROUTES = [("full", {}), ("full", {"kv_layout": "shared"}), ("sample_only", {"rng": "hf"})]
ROUTES += [("sample_only", {"output_logits": True})]


def generate(modes, mode, **arguments):
    arguments = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": PAD, **arguments}
    arguments = {"eos_token_id": None, "seed": None if arguments.get("rng") else 1, **arguments}
    with ak.patched(shared("llama"), modes) as model:
        given = {"return_dict_in_generate": True, "return_logprobs": True, "mode": mode, **arguments}
        return model.generate(prompts(4, WIDTH), **given)


def at(*positions):
    return [i in positions for i in range(NEW)]


@pytest.mark.parametrize(("plan", "more"), ROUTES)
def test_a_closing_and_a_named_mode(plan, more):
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=CLOSING))
    out = generate(modes, ["slow", "fast", "auto", "auto"], **more)
    assert out.stats.plan == plan and out.forced.dtype == torch.bool
    assert out.forced[0].tolist() == at(0, CAP, CAP + 1) and out.forced[1].tolist() == at(0)
    drawn_slow, drawn_fast = at(CAP, CAP + 1), at()
    assert out.forced[2:].tolist() == [drawn_slow if mode == 1 else drawn_fast for mode in out.modes[2:].tolist()]


@pytest.mark.parametrize(("plan", "more"), ROUTES)
def test_prefix_and_suffix_of_a_mode(plan, more):
    modes = ak.Modes(fast=(10, FAST, 11, 12), slow=(10, SLOW))
    out = generate(modes, ["fast", "slow", "auto", "auto"], **more)
    assert out.forced[0].tolist() == at(0, 1, 2, 3) and out.forced[1].tolist() == at(0, 1)
    assert out.forced[2:].tolist() == [at(0) if mode == 1 else at(0, 2, 3) for mode in out.modes[2:].tolist()]


def test_rows_that_have_ended_and_rows_that_are_free():
    modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=3), slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=CLOSING))
    for compact_at in (0.0, 1.0):
        out = generate(modes, ["slow", "fast", "fast", "fast"], compact_at=compact_at)
        assert out.lengths.tolist() == [NEW, 3, 3, 3]
        assert out.forced[0].tolist() == at(0, CAP, CAP + 1) and out.forced[1:].tolist() == [at(0)] * 3
    # The closing is cut by the row's end, by what the model draws or by the length.
    short = generate(modes, "slow", max_new_tokens=CAP + 1)
    assert short.forced.tolist() == [[True, *[False] * (CAP - 1), True]] * 4
    free = generate(ak.Modes(fast=FAST, slow=SLOW), None, eos_token_id=[EOS, *range(20, 60)])
    assert free.lengths.min() < NEW and not free.forced.any() and free.forced.shape == free.logprobs.shape
    assert generate(modes, "slow", return_logprobs=False).forced is None
