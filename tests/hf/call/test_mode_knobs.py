"""mode_bias, fast_prob and mode: what each one does to the first token."""

import pytest
import torch
from goodness import assert_fits, assert_rate
from tiny_models import FAST, SLOW, prompts, shared
from transformers import TemperatureLogitsWarper

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
THREE = ak.Modes(fast=FAST, slow=SLOW, tool=40)
WIDTH = 6
FILTERED = {"temperature": 0.7, "top_k": 3, "top_p": 0.5, "min_p": 0.4}


def generate(ids, modes=MODES, **arguments):
    arguments = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "eos_token_id": None, **arguments}
    with ak.patched(shared("llama"), modes) as model:
        return model.generate(ids, return_dict_in_generate=True, **arguments)


def first_logits(ids, modes=MODES) -> torch.Tensor:
    """[rows, M] float64: the model's logits of the mode tokens after the prompt."""
    with torch.no_grad():
        return shared("llama")(ids).logits[:, -1].double()[:, list(modes.token_ids)]


def gate_probabilities(out, modes=MODES) -> torch.Tensor:
    """[rows, M]: what the first token was drawn from; nothing but the modes may be left."""
    probabilities = torch.softmax(out.scores[0].double(), -1)
    listed = probabilities[:, list(modes.token_ids)]
    assert torch.allclose(listed.sum(1), torch.ones(len(listed), dtype=torch.float64))
    assert (probabilities > 0).sum(1).max() <= len(modes)
    return listed


class TestBias:
    @pytest.mark.parametrize(
        ("bias", "expected"),
        [
            (1.5, [[1.5, 0]] * 6),
            (-2, [[-2, 0]] * 6),
            (torch.tensor(0.5), [[0.5, 0]] * 6),
            ([0.0, 1.0, 2.0, -1.0, -2.0, 3.0], [[b, 0] for b in (0, 1, 2, -1, -2, 3)]),
            (torch.tensor([1.0, -1.0]), [[1, 0]] * 3 + [[-1, 0]] * 3),
            ({"fast": 1.5}, [[1.5, 0]] * 6),
            ({"slow": 0.7, "fast": [1.0, 2.0]}, [[1, 0.7]] * 3 + [[2, 0.7]] * 3),
        ],
        ids=["float", "int", "scalar tensor", "row list", "per prompt", "dict", "dict of both"],
    )
    def test_gate_is_softmax_of_biased_modes(self, bias, expected):
        ids = prompts(2, WIDTH)
        out = generate(ids, mode_bias=bias, num_return_sequences=3, output_scores=True, seed=1, **FILTERED)
        logits = first_logits(ids.repeat_interleave(3, 0))
        wanted = torch.softmax((logits + torch.tensor(expected, dtype=torch.float64)) / 0.7, -1)
        torch.testing.assert_close(gate_probabilities(out), wanted, atol=1e-5, rtol=0)

    def test_tokens_follow_it_without_scores(self):
        ids = prompts(1, WIDTH)
        wanted = torch.softmax((first_logits(ids)[0] + torch.tensor([1.2, 0.0])) / 0.7, -1)
        out = generate(ids, mode_bias=1.2, num_return_sequences=4000, seed=3, **FILTERED)
        assert_fits(out.modes, wanted)

    def test_temperature_of_the_gate_is_the_whole_temperature(self):
        # Hugging Face applies a caller's own warper and then its own: together they divide by 0.35.
        ids, own = prompts(3, WIDTH), [TemperatureLogitsWarper(0.5)]
        out = generate(ids, mode_bias=1.0, output_scores=True, temperature=0.7, logits_processor=own)
        wanted = torch.softmax((first_logits(ids) + torch.tensor([1.0, 0.0])) / 0.35, -1)
        torch.testing.assert_close(gate_probabilities(out), wanted, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("bias", "token"), [(1e4, FAST), (-1e4, SLOW), (float("inf"), FAST)])
    def test_greedy_follows_the_bias(self, bias, token):
        out = generate(prompts(5, WIDTH), mode_bias=bias, do_sample=False)
        assert (out.sequences[:, WIDTH] == token).all()

    def test_greedy_takes_the_better_mode(self):
        ids = prompts(8, WIDTH)
        out = generate(ids, mode_bias=0.0, do_sample=False)
        assert torch.equal(out.modes.long(), first_logits(ids).argmax(1))

    def test_only_the_first_token_is_touched(self):
        ids = prompts(4, WIDTH)
        out = generate(ids, mode_bias=0.3, max_new_tokens=8, do_sample=False)
        rest = shared("llama").generate(
            out.sequences[:, : WIDTH + 1], max_new_tokens=7, do_sample=False, eos_token_id=None
        )
        assert torch.equal(out.sequences, rest)


class TestFastProb:
    @pytest.mark.parametrize("greedy", [False, True])
    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
    def test_rate(self, probability, greedy):
        ids = prompts(1, WIDTH).expand(4000, -1)
        settings = {"do_sample": False} if greedy else FILTERED
        out = generate(ids, fast_prob=probability, seed=17, **settings)
        assert set(out.sequences[:, WIDTH].tolist()) <= {FAST, SLOW}
        assert_rate((out.modes == 0).sum(), 4000, probability)

    @pytest.mark.parametrize("greedy", [False, True])
    def test_other_modes_keep_their_proportions(self, greedy):
        ids = prompts(1, WIDTH).expand(4000, -1)
        settings = {"do_sample": False} if greedy else {"temperature": 2.0}
        own = torch.softmax(first_logits(ids[:1], THREE)[0] / (1.0 if greedy else 2.0), -1)
        wanted = torch.cat([torch.tensor([0.3]).double(), 0.7 * own[1:] / own[1:].sum()])
        assert_fits(generate(ids, THREE, fast_prob=0.3, seed=5, **settings).modes, wanted)

    def test_per_row_and_per_prompt(self):
        ids = prompts(2, WIDTH)
        rows = torch.tensor([0.1, 0.2, 0.3, 0.4])
        out = generate(ids, fast_prob=rows, num_return_sequences=2, output_scores=True, seed=0)
        torch.testing.assert_close(gate_probabilities(out)[:, 0], rows.double(), atol=1e-6, rtol=0)
        out = generate(ids, fast_prob=[0.25, 0.75], num_return_sequences=2, output_scores=True, seed=0)
        wanted = torch.tensor([0.25, 0.25, 0.75, 0.75]).double()
        torch.testing.assert_close(gate_probabilities(out)[:, 0], wanted, atol=1e-6, rtol=0)

    def test_huggingface_generator(self):
        ids = prompts(1, WIDTH).expand(4000, -1)
        for settings in ({"do_sample": False}, {"temperature": 0.5}):
            torch.manual_seed(1)
            out = generate(ids, fast_prob=0.3, rng="hf", **settings)
            assert_rate((out.modes == 0).sum(), 4000, 0.3)

    def test_after_the_gate_greedy_is_greedy(self):
        ids = prompts(4, WIDTH)
        out = generate(ids, fast_prob=0.5, max_new_tokens=8, do_sample=False, seed=1)
        rest = shared("llama").generate(
            out.sequences[:, : WIDTH + 1], max_new_tokens=7, do_sample=False, eos_token_id=None
        )
        assert torch.equal(out.sequences, rest)
        assert set(out.modes.tolist()) == {0, 1}


class TestMode:
    @pytest.mark.parametrize("greedy", [False, True])
    @pytest.mark.parametrize(("name", "index"), [("fast", 0), ("slow", 1)])
    def test_name(self, name, index, greedy):
        out = generate(prompts(5, WIDTH), mode=name, max_new_tokens=3, do_sample=not greedy)
        assert (out.sequences[:, WIDTH] == MODES.token_ids[index]).all()
        assert out.modes.tolist() == [index] * 5

    def test_auto_is_the_unbiased_gate(self):
        ids = prompts(6, WIDTH)
        auto = generate(ids, mode="auto", seed=4, output_scores=True)
        zero = generate(ids, mode_bias=0.0, seed=4)
        assert torch.equal(auto.sequences, zero.sequences)
        wanted = torch.softmax(first_logits(ids), -1)
        torch.testing.assert_close(gate_probabilities(auto), wanted, atol=1e-5, rtol=0)

    def test_auto_with_a_bias(self):
        assert (generate(prompts(3, WIDTH), mode="auto", mode_bias=1e4).modes == 0).all()

    def test_list_per_row_and_per_prompt(self):
        ids = prompts(2, WIDTH)
        rows = ["slow", "auto", "fast", "fast", "slow", "auto"]
        out = generate(ids, mode=rows, num_return_sequences=3, do_sample=True, seed=1)
        for mode, wanted in zip(out.modes.tolist(), rows, strict=True):
            assert wanted == "auto" or MODES.names[mode] == wanted
        out = generate(ids, mode=("slow", "fast"), num_return_sequences=3)
        assert out.modes.tolist() == [1, 1, 1, 0, 0, 0]

    def test_auto_rows_of_a_list_are_restricted_too(self):
        ids = prompts(1, WIDTH).expand(400, -1)
        out = generate(ids, mode=["auto"] * 399 + ["slow"], seed=2)
        assert_fits(out.modes[:399], torch.softmax(first_logits(ids[:1])[0], -1))

    @pytest.mark.parametrize(
        ("modes", "samples", "expected"),
        [
            (MODES, 2, [0, 1]),
            (MODES, 4, [0, 0, 1, 1]),
            (MODES, 5, [0, 0, 0, 1, 1]),
            (THREE, 3, [0, 1, 2]),
            (THREE, 4, [0, 0, 1, 2]),
            (THREE, 7, [0, 0, 0, 1, 1, 2, 2]),
        ],
    )
    def test_balanced(self, modes, samples, expected):
        out = generate(prompts(3, WIDTH), modes, mode="balanced", num_return_sequences=samples)
        assert out.modes.tolist() == expected * 3
        wanted = [modes.token_ids[mode] for mode in expected] * 3
        assert out.sequences[:, WIDTH].tolist() == wanted

    def test_three_modes_by_name(self):
        assert (generate(prompts(2, WIDTH), THREE, mode="tool").sequences[:, WIDTH] == 40).all()


class TestAnyOtherToken:
    """`None` is every token that no other mode has: it is forced by banning those."""

    MODES = ak.Modes(fast=FAST, slow=None)

    def probabilities(self, ids, temperature=1.0):
        with torch.no_grad():
            return torch.softmax(shared("llama")(ids).logits[:, -1].double() / temperature, -1)

    def test_forced(self):
        ids = prompts(1, WIDTH).expand(4000, -1)
        # One of the best tokens is the listed mode, or the ban would never show.
        modes = ak.Modes(fast=int(self.probabilities(ids[:1])[0].argmax()), slow=None)
        out = generate(ids, modes, mode="slow", seed=3, temperature=0.8, top_k=1)
        wanted = self.probabilities(ids[:1], 0.8)[0]
        wanted[modes.token_ids[0]] = 0
        assert_fits(out.sequences[:, WIDTH], wanted / wanted.sum())
        assert (out.modes == 1).all()
        greedy = generate(ids[:2], modes, mode="slow", do_sample=False)
        assert (greedy.sequences[:, WIDTH] == wanted.argmax()).all()

    def test_forced_in_a_list_and_balanced(self):
        ids = prompts(2, WIDTH)
        out = generate(ids, self.MODES, mode=["slow", "fast"], do_sample=False)
        assert out.modes.tolist() == [1, 0] and out.sequences[0, WIDTH] != FAST
        out = generate(ids, self.MODES, mode="balanced", num_return_sequences=2, seed=1)
        assert out.modes.tolist() == [0, 1, 0, 1]

    def test_exact_probability_and_bias(self):
        ids = prompts(1, WIDTH).expand(4000, -1)
        assert_rate((generate(ids, self.MODES, fast_prob=0.5, seed=2).modes == 0).sum(), 4000, 0.5)
        odds = self.probabilities(ids[:1])[0, FAST] * torch.tensor(3.0).exp()
        wanted = odds / (odds + 1 - self.probabilities(ids[:1])[0, FAST])
        out = generate(ids, self.MODES, mode_bias=3.0, seed=2)
        assert_rate((out.modes == 0).sum(), 4000, float(wanted))

    def test_reported(self):
        ids = prompts(6, WIDTH)
        own = self.probabilities(ids)
        modes = ak.Modes(fast=int(own[2].argmax()), slow=None)
        out = generate(ids, modes, do_sample=False)
        assert out.modes.tolist() == [int(token != modes.token_ids[0]) for token in own.argmax(1)]
        fast = own[:, modes.token_ids[0]]
        torch.testing.assert_close(out.mode_probs.double(), torch.stack([fast, 1 - fast], 1), atol=1e-5, rtol=0)
