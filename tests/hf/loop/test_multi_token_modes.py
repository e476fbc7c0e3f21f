"""Modes of several tokens, like Qwen3's: common prefix forced, gate, suffix forced, then free."""

import pytest
import torch
from goodness import assert_rate
from recorders import RowLengths
from tiny_models import PAD, prompts, shared

import adapt_kernels as ak

PREFIX, SUFFIX = [7], [8, 20]
FAST_IDS, SLOW_IDS = (7, 20, 8, 20), (7, 21)
MODES = ak.Modes(fast=FAST_IDS, slow=SLOW_IDS)
WIDTH, NEW = 6, 10


def generate(ids, modes=MODES, **arguments):
    arguments = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **arguments}
    with ak.patched(shared("qwen3"), modes) as model:
        return model.generate(ids, return_dict_in_generate=True, **arguments)


def unpatched_greedy(ids, new=NEW):
    return shared("qwen3").generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)


def opened(ids, mode_ids):
    return torch.cat([ids, torch.tensor(mode_ids).expand(len(ids), -1)], 1)


def own_probabilities(ids, candidates):
    with torch.no_grad():
        return torch.softmax(shared("qwen3")(ids).logits[:, -1].double()[:, list(candidates)], -1)


@pytest.mark.parametrize("sampled", [False, True])
def test_prefix_and_suffix_are_forced(sampled):
    ids = prompts(4, WIDTH)
    out = generate(ids, mode=["fast", "slow", "fast", "slow"], do_sample=sampled, seed=1)
    for row, mode_ids in enumerate([FAST_IDS, SLOW_IDS] * 2):
        assert tuple(out.sequences[row, WIDTH : WIDTH + len(mode_ids)].tolist()) == mode_ids
    assert out.modes.tolist() == [0, 1, 0, 1]


def test_rows_of_a_mixed_batch_go_on_as_the_model_would():
    ids = prompts(4, WIDTH)
    out = generate(ids, mode=["fast", "slow", "slow", "fast"])
    for row, mode_ids in enumerate([FAST_IDS, SLOW_IDS, SLOW_IDS, FAST_IDS]):
        expected = unpatched_greedy(opened(ids[row : row + 1], mode_ids), NEW - len(mode_ids))
        assert torch.equal(out.sequences[row], expected[0])


@pytest.mark.parametrize("knob", [{"mode": "auto"}, {"mode_bias": 0.0}])
def test_the_gate_decides_after_the_prefix(knob):
    ids = prompts(8, WIDTH)
    own = own_probabilities(opened(ids, PREFIX), (20, 21))
    out = generate(ids, **knob)
    assert torch.equal(out.modes.long(), own.argmax(1))
    torch.testing.assert_close(out.mode_probs.double(), own, atol=1e-5, rtol=0)
    for row, mode in enumerate(out.modes.tolist()):
        wanted = (FAST_IDS, SLOW_IDS)[mode]
        assert tuple(out.sequences[row, WIDTH : WIDTH + len(wanted)].tolist()) == wanted


@pytest.mark.parametrize("rng", [None, "hf"])
def test_exact_probability(rng):
    torch.manual_seed(3)
    ids = prompts(1, WIDTH).expand(2000, -1)
    out = generate(ids, fast_prob=0.3, max_new_tokens=4, do_sample=True, rng=rng)
    assert_rate((out.modes == 0).sum(), 2000, 0.3)
    assert (out.sequences[:, WIDTH] == 7).all()
    fast = out.sequences[out.modes == 0][:, WIDTH:]
    assert (fast == torch.tensor(FAST_IDS)).all()
    slow = out.sequences[out.modes == 1][:, WIDTH:]
    assert (slow[:, :2] == torch.tensor(SLOW_IDS)).all()
    assert slow[:, 2].unique().numel() > 5, "after its last id a row is free"


def test_three_modes_with_suffixes_of_different_length():
    modes = ak.Modes(none=(7, 8, 20, 21, 22), low=(7, 8, 30), high=(7, 8, 40, 41))
    ids = prompts(3, WIDTH)
    out = generate(ids, modes, mode=["high", "none", "low"])
    for row, name in enumerate(["high", "none", "low"]):
        wanted = modes[name].ids
        expected = unpatched_greedy(opened(ids[row : row + 1], wanted), NEW - len(wanted))
        assert torch.equal(out.sequences[row], expected[0])


def test_a_suffix_without_a_common_prefix():
    modes = ak.Modes(fast=(20, 8, 20), slow=21)
    out = generate(prompts(2, WIDTH), modes, mode=["slow", "fast"])
    assert out.sequences[0, WIDTH] == 21
    assert out.sequences[1, WIDTH : WIDTH + 3].tolist() == [20, 8, 20]


class TestReporting:
    """Nothing given: tokens are the unpatched model's, and each row's mode is read off them."""

    @pytest.fixture
    def ids(self):
        return prompts(4, WIDTH)

    @pytest.fixture
    def free(self, ids):
        return unpatched_greedy(ids)[:, WIDTH:]

    def test_row_that_stays(self, ids, free):
        a, b, c, _ = free[0, :4].tolist()
        modes = ak.Modes(fast=(a, b, c), slow=(a, b + 1))
        out = generate(ids, modes)
        assert torch.equal(out.sequences[:, WIDTH:], free)
        on_prefix = free[:, 0] == a
        assert out.modes[0] == 0
        assert (out.modes[~on_prefix] == -1).all() and (~on_prefix).any()
        own = own_probabilities(opened(ids, [a]), (b, b + 1))
        torch.testing.assert_close(out.mode_probs[0].double(), own[0], atol=1e-5, rtol=0)
        assert (out.mode_probs[~on_prefix] == 0).all()

    def test_row_that_leaves_the_suffix(self, ids, free):
        a, b, c, d = free[0, :4].tolist()
        for leaving in ((a, b, c + 1, d), (a, b, c, d + 1)):
            out = generate(ids, ak.Modes(fast=leaving, slow=(a, b + 1)))
            assert torch.equal(out.sequences[:, WIDTH:], free)
            assert out.modes[0] == -1

    def test_row_that_takes_neither_at_the_gate(self, ids, free):
        a, b = free[0, :2].tolist()
        out = generate(ids, ak.Modes(fast=(a, b + 1), slow=(a, b + 2)))
        assert torch.equal(out.sequences[:, WIDTH:], free)
        assert out.modes[0] == -1

    def test_single_token_modes(self, ids, free):
        modes = ak.Modes(fast=int(free[0, 0]), slow=int(free[1, 0]))
        out = generate(ids, modes)
        assert torch.equal(out.sequences[:, WIDTH:], free)
        expected = [{int(free[0, 0]): 0, int(free[1, 0]): 1}.get(t, -1) for t in free[:, 0].tolist()]
        assert out.modes.tolist() == expected and out.modes.dtype == torch.int8

    def test_too_short_to_reach_the_gate(self, ids):
        out = generate(ids, max_new_tokens=1, mode="fast")
        assert (out.sequences[:, WIDTH] == 7).all()
        assert (out.modes == -1).all() and (out.mode_probs == 0).all()

    @pytest.mark.parametrize("knob", [{}, {"mode": "fast"}])
    def test_row_that_ends_before_the_gate_has_no_mode(self, ids, free, knob):
        # The row is padded from its second token on: what the others do at the gate is not its mode.
        modes = ak.Modes(fast=(int(free[0, 0]), 20), slow=(int(free[0, 0]), 21))
        out = generate(ids, modes, eos_token_id=1, stopping_criteria=[RowLengths(WIDTH, [1, 6, 6, 6])], **knob)
        assert (out.sequences[0, WIDTH + 1 :] == PAD).all()
        assert out.modes[0] == -1
        assert (out.mode_probs[0] == 0).all()

    @pytest.mark.parametrize("lengths", [[2, 6, 6, 6], [2, 2, 2, 2]])
    def test_row_that_ends_at_the_gate_keeps_its_mode_whatever_the_others_do(self, ids, free, lengths):
        a, b, c = free[0, :3].tolist()
        modes, ends = ak.Modes(fast=(a, b, c + 1), slow=(a, b + 1)), [RowLengths(WIDTH, lengths)]
        # Per-step outputs keep every row in the batch.
        out = generate(ids, modes, eos_token_id=1, stopping_criteria=ends, output_scores=True)
        assert out.stats.plan == "sample_only" and out.modes[0] == 0
