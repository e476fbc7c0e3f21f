"""What a call reports: mode_probs, logprobs, stats, and the mode of a prompt that already opened one."""

import dataclasses

import pytest
import torch
from recorders import RowLengths
from tiny_models import FAST, PAD, SLOW, left_padded, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 6, 8


def generate(ids, modes=MODES, **arguments):
    arguments = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "eos_token_id": None, **arguments}
    with ak.patched(shared("llama"), modes) as model:
        return model.generate(ids, return_dict_in_generate=True, **arguments)


def step_logits(sequences) -> torch.Tensor:
    """[rows, NEW, V] float64: the logits each new token was chosen from, by one forward over everything."""
    with torch.no_grad():
        return shared("llama")(sequences[:, :-1]).logits[:, WIDTH - 1 :].double()


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), atol=2e-5, rtol=0)


class TestModeProbs:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"do_sample": False},
            {"mode_bias": 2.0, "temperature": 0.5, "top_k": 3},
            {"mode_bias": {"slow": -4.0}, "do_sample": False},
            {"fast_prob": 0.9, "top_p": 0.3},
            {"mode": "slow"},
            {"mode": "auto", "repetition_penalty": 4.0, "rng": "hf"},
            {"suppress_tokens": [SLOW, 11], "mode": "auto"},
            {"output_scores": True, "mode": "balanced", "num_return_sequences": 2},
        ],
        ids=str,
    )
    def test_are_the_models_own(self, arguments):
        ids = prompts(4, WIDTH)
        with torch.no_grad():
            own = torch.softmax(shared("llama")(ids).logits[:, -1].double()[:, [FAST, SLOW]], -1)
        out = generate(ids, **arguments)
        assert out.mode_probs.dtype == torch.float32
        close(out.mode_probs, own.repeat_interleave(arguments.get("num_return_sequences", 1), 0))

    def test_three_modes(self):
        ids, modes = prompts(4, WIDTH), ak.Modes(a=30, b=20, c=10)
        with torch.no_grad():
            own = torch.softmax(shared("llama")(ids).logits[:, -1].double()[:, [30, 20, 10]], -1)
        close(generate(ids, modes, mode_bias={"c": 3.0}).mode_probs, own)


class TestLogprobs:
    def test_sampled_tokens_are_tempered_and_unfiltered(self):
        out = generate(prompts(3, WIDTH), temperature=0.7, top_k=5, top_p=0.9, seed=1, return_logprobs=True)
        expected = torch.log_softmax(step_logits(out.sequences) / 0.7, -1)
        assert out.logprobs.dtype == torch.float32 and out.logprobs.shape == (3, NEW)
        close(out.logprobs, expected.gather(2, out.sequences[:, WIDTH:, None]).squeeze(2))

    def test_do_not_change_the_tokens(self):
        for settings in ({"seed": 2, "top_p": 0.8}, {"do_sample": False}, {"seed": 2, "mode_bias": 1.0}):
            plain = generate(prompts(3, WIDTH), **settings)
            assert torch.equal(generate(prompts(3, WIDTH), **settings, return_logprobs=True).sequences, plain.sequences)
            assert plain.logprobs is None

    @pytest.mark.parametrize("rng", [None, "hf"])
    @pytest.mark.parametrize("scores", [False, True])
    def test_mode_token_is_scored_over_the_modes_with_its_bias(self, rng, scores):
        torch.manual_seed(0)
        out = generate(
            prompts(6, WIDTH), mode_bias=1.5, temperature=0.6, rng=rng, output_scores=scores, return_logprobs=True
        )
        logits = step_logits(out.sequences)
        gate = torch.log_softmax((logits[:, 0, [FAST, SLOW]] + torch.tensor([1.5, 0.0])) / 0.6, -1)
        close(out.logprobs[:, 0], gate.gather(1, out.modes.long()[:, None]).squeeze(1))
        rest = torch.log_softmax(logits[:, 1:] / 0.6, -1)
        close(out.logprobs[:, 1:], rest.gather(2, out.sequences[:, WIDTH + 1 :, None]).squeeze(2))

    def test_exact_and_forced_modes(self):
        ids = prompts(8, WIDTH)
        out = generate(ids, fast_prob=0.3, seed=4, return_logprobs=True)
        close(out.logprobs[:, 0], torch.where(out.modes == 0, 0.3, 0.7).log())
        out = generate(ids, mode="slow", temperature=0.5, return_logprobs=True)
        own = torch.log_softmax(step_logits(out.sequences)[:, 0, [FAST, SLOW]] / 0.5, -1)
        close(out.logprobs[:, 0], own[:, 1])

    def test_greedy_is_scored_at_temperature_one(self):
        out = generate(prompts(3, WIDTH), do_sample=False, return_logprobs=True)
        expected = torch.log_softmax(step_logits(out.sequences), -1)
        close(out.logprobs, expected.gather(2, out.sequences[:, WIDTH:, None]).squeeze(2))

    def test_zero_after_a_rows_end(self):
        criteria = [RowLengths(WIDTH, [2, 7, 4])]
        out = generate(prompts(3, WIDTH), eos_token_id=1, stopping_criteria=criteria, seed=1, return_logprobs=True)
        assert (out.logprobs != 0).sum(1).tolist() == [2, 7, 4]


class TestStats:
    def test_counts(self):
        out = generate(prompts(3, WIDTH), num_return_sequences=2)
        stats = dataclasses.asdict(out.stats)
        assert stats["plan"] == "full" and stats["reason"] == ""
        assert stats["row_steps"] == stats["row_steps_padded"] == 6 * (NEW - 1)
        assert stats["prefill_tokens"] == 3 * WIDTH
        # 2 layers, keys and values, 2 heads of 8 floats; the last token is never fed back. While the prompts become
        # rows, one tensor exists twice.
        position = 2 * 8 * 4
        assert stats["kv_bytes_peak"] == position * (4 * 6 * (WIDTH + NEW - 1) + 3 * WIDTH)
        assert all(type(stats[name]) is int for name in ("row_steps", "prefill_tokens", "kv_bytes_peak"))

    def test_counts_of_the_whole_batch(self):
        out = generate(prompts(3, WIDTH), num_return_sequences=2, rng="hf")
        assert out.stats.plan == "sample_only" and "rng='hf'" in out.stats.reason
        assert out.stats.row_steps == out.stats.row_steps_padded == 6 * (NEW - 1)
        assert out.stats.prefill_tokens == 6 * WIDTH
        assert out.stats.kv_bytes_peak == 2 * 2 * 6 * 2 * 8 * 4 * (WIDTH + NEW - 1)

    def test_rows_that_end_early_are_not_computed(self):
        out = generate(prompts(3, WIDTH), eos_token_id=1, stopping_criteria=[RowLengths(WIDTH, [1, 5, 2])])
        assert out.stats.row_steps == 2 + 1 + 1 + 1 and out.stats.row_steps_padded == 3 * 4

    def test_padding_counts_as_prefill(self):
        inputs = left_padded(prompts(2, WIDTH), [2, 6])
        out = generate(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        assert out.stats.prefill_tokens == 2 * WIDTH

    @pytest.mark.parametrize("architecture", ["mamba", "jamba", "qwen3_next"])
    def test_states_of_linear_attention_count_as_cache(self, architecture):
        with ak.patched(shared(architecture), MODES) as model:
            model.generate(prompts(2, WIDTH), max_new_tokens=3, eos_token_id=None)
            two = ak.last_stats(model).kv_bytes_peak
            model.generate(prompts(4, WIDTH), max_new_tokens=3, eos_token_id=None)
            assert ak.last_stats(model).kv_bytes_peak == 2 * two > 0

    def test_last_stats_without_return_dict(self, patched_llama):
        assert ak.last_stats(patched_llama) is None
        patched_llama.generate(prompts(2, WIDTH), max_new_tokens=3, eos_token_id=None)
        first = ak.last_stats(patched_llama)
        assert first.plan == "full" and first.row_steps == 2 * 2
        patched_llama.generate(prompts(2, WIDTH), max_new_tokens=3, num_beams=2, eos_token_id=None)
        assert ak.last_stats(patched_llama).plan == "original"

    def test_a_failed_call_leaves_the_last_stats(self, patched_llama):
        patched_llama.generate(prompts(2, WIDTH), max_new_tokens=3, eos_token_id=None)
        before = ak.last_stats(patched_llama)
        with pytest.raises(ValueError):
            patched_llama.generate(prompts(2, WIDTH), mode="medium")
        assert ak.last_stats(patched_llama) is before


class TestPromptInAMode:
    """Templates that prefill `<think>`: the mode is decided before the call."""

    @pytest.fixture
    def ids(self):
        ids = prompts(3, WIDTH)
        ids[0, -1], ids[2, -1] = SLOW, FAST
        return ids

    def test_is_reported(self, ids):
        unpatched = shared("llama").generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        out = generate(ids, do_sample=False)
        assert torch.equal(out.sequences, unpatched)
        assert out.modes.tolist() == [1, -1, 0]
        assert out.mode_probs[0].tolist() == [0, 1] and out.mode_probs[2].tolist() == [1, 0]
        assert 0 < out.mode_probs[1, 0] < 1

    def test_is_reported_per_sample(self, ids):
        assert generate(ids, num_return_sequences=2).modes[[0, 1, 4, 5]].tolist() == [1, 1, 0, 0]

    @pytest.mark.parametrize("knob", [{"mode": "slow"}, {"mode": "auto"}, {"mode_bias": 0.0}, {"fast_prob": 0.5}])
    def test_leaves_no_mode_to_choose(self, ids, knob):
        with pytest.raises(ValueError, match=r"prompt 0 already ends in the tokens of mode 'slow'.*chat template"):
            generate(ids, **knob)
        with pytest.raises(ValueError, match="prompt 1 already ends in the tokens of mode 'fast'"):
            generate(ids[1:], **knob, num_return_sequences=2 if "mode" not in knob else 1)

    def test_several_tokens(self):
        modes = ak.Modes(fast=(7, 20, 8), slow=(7, 21))
        ids = torch.cat([prompts(3, WIDTH), torch.tensor([[3, 7, 21], [7, 20, 8], [3, 3, 7]])], 1)
        assert generate(ids[:2], modes).modes.tolist() == [1, 0]
        with pytest.raises(ValueError, match="prompt 1 already ends in the tokens of mode 'slow'"):
            generate(ids[[2, 0]], modes, mode="fast")

    def test_mode_token_elsewhere_in_the_prompt_is_no_mode(self):
        ids = prompts(2, WIDTH)
        ids[:, 2] = SLOW
        assert (generate(ids, mode="fast").sequences[:, WIDTH] == FAST).all()


class TestModeLimit:
    MODES = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=3), slow=SLOW)

    @pytest.mark.parametrize("eos", [None, 1])
    @pytest.mark.parametrize("sampled", [False, True])
    def test_is_exact(self, eos, sampled):
        arguments = {"mode": ["fast", "slow"] * 2, "do_sample": sampled, "seed": 1, "suppress_tokens": [PAD, 1]}
        capped = generate(prompts(4, WIDTH), self.MODES, eos_token_id=eos, pad_token_id=PAD, **arguments)
        free = generate(prompts(4, WIDTH), MODES, eos_token_id=eos, **arguments)
        assert torch.equal(capped.sequences[1::2], free.sequences[1::2])
        assert torch.equal(capped.sequences[::2, : WIDTH + 3], free.sequences[::2, : WIDTH + 3])
        assert (capped.sequences[::2, WIDTH + 3 :] == PAD).all()

    def test_ends_the_call_when_all_rows_are_capped(self):
        assert generate(prompts(2, WIDTH), self.MODES, mode="fast").sequences.shape[1] == WIDTH + 3

    def test_one_token(self):
        modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=1), slow=ak.Mode(SLOW, max_new_tokens=2))
        out = generate(prompts(2, WIDTH), modes, mode=["fast", "slow"])
        assert out.sequences.shape[1] == WIDTH + 2 and out.sequences[0, -1] == PAD

    def test_counts_the_tokens_of_a_mode_opened_by_the_prompt(self):
        ids = prompts(2, WIDTH)
        ids[0, -1] = FAST
        out = generate(ids, self.MODES, suppress_tokens=[PAD])
        assert (out.sequences[:, WIDTH:] != PAD).sum(1).tolist() == [3, NEW]

    def test_rows_ended_by_a_criterion_keep_their_tokens_without_eos(self):
        criteria = [RowLengths(WIDTH, [NEW, 2])]
        arguments = {"mode": ["fast", "slow"], "do_sample": False, "suppress_tokens": [PAD]}
        capped = generate(prompts(2, WIDTH), self.MODES, stopping_criteria=criteria, **arguments)
        assert capped.sequences.shape[1] == WIDTH + 3
        free = generate(prompts(2, WIDTH), MODES, **arguments)
        assert torch.equal(capped.sequences, free.sequences[:, : WIDTH + 3])


@pytest.mark.parametrize("arguments", [{"mode": "balanced"}, {"mode_bias": 3.0}, {"fast_prob": 0.9}, {}])
def test_mode_logprobs_are_the_models_own_over_the_whole_vocabulary(arguments):
    """Whatever forced or biased the mode: what an importance ratio of the mode token is taken against."""
    ids = prompts(2, WIDTH).repeat_interleave(4, 0)
    out = generate(ids, seed=3, temperature=0.7, return_logprobs=True, **arguments)
    first = torch.log_softmax(step_logits(out.sequences)[:, 0] / 0.7, -1)
    close(out.mode_logprobs, first.gather(1, out.sequences[:, WIDTH, None])[:, 0])
    assert out.mode_logprobs.dtype == torch.float32
    assert generate(ids, seed=3, **arguments).mode_logprobs is None
    several = ak.Modes(fast=(8, FAST), slow=(8, SLOW, 9))
    out = generate(ids, several, mode="slow", seed=3, return_logprobs=True)
    close(out.mode_logprobs, torch.log_softmax(step_logits(out.sequences)[:, 1], -1)[:, SLOW])
