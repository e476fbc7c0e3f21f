"""Plan "full" gives the unpatched model's tokens: architectures x left padding x samples x compaction threshold."""

import itertools

import pytest
import torch
from recorders import RowLengths, forward_calls
from tiny_models import DECODER_ONLY, DEFAULT_RUN, EOS, FAST, PAD, SLOW, VOCAB, left_padded, prompts, shared

import adapt_kernels as ak
from adapt_kernels.hf.kv import batch
from adapt_kernels.hf.kv.segments import reorder

WIDTH, NEW = 8, 26
LENGTHS = [4, 24, 8, 24, 8, 3]
THRESHOLDS = (0.5, 0.75, 1.0)
# Early segments of 6 tokens: they fill, and late ones double twice.
SMALL = ak.Modes(fast=ak.Mode(FAST, kv_tokens=6), slow=SLOW)
MODES = ak.Modes(fast=FAST, slow=SLOW)


def architectures_in_all_cases():
    """Every case under `full`; by default two or three per architecture, in which each pair of values meets."""
    for place, architecture in enumerate(DECODER_ONLY):
        default = {((place + i) % 2, (place + (i + 1) // 2) % 2, i) for i in range(3 - place % 2)}
        for case in itertools.product((0, 1), (0, 1), range(3)):
            marks = () if case in default and architecture in DEFAULT_RUN else pytest.mark.full
            padded, several, i = case
            yield pytest.param(architecture, bool(padded), 4 if several else 1, THRESHOLDS[i], marks=marks)


def arguments(padded, samples, lengths=LENGTHS, seed=0):
    """Rows that end by a criterion of their own, padded as after an EOS token."""
    rows = len(lengths)
    ids = prompts(rows, WIDTH, seed)
    inputs = left_padded(ids, [8, 3, 8, 5, 4, 8][:rows]) if padded else {"input_ids": ids}
    ends = [RowLengths(WIDTH, [length for length in lengths for _ in range(samples)])]
    inputs |= {"stopping_criteria": ends, "eos_token_id": EOS, "suppress_tokens": [EOS], "max_new_tokens": NEW}
    drawn = {"do_sample": True, "top_k": 1, "num_return_sequences": samples}
    return inputs | {"return_dict_in_generate": True} | (drawn if samples > 1 else {"do_sample": False})


@pytest.mark.parametrize(("architecture", "padded", "samples", "threshold"), list(architectures_in_all_cases()))
def test_tokens_equal_the_unpatched_models(architecture, padded, samples, threshold):
    model, call = shared(architecture), arguments(padded, samples)
    unpatched = model.generate(**call)
    with ak.patched(model, MODES if threshold == 1 else SMALL), forward_calls(model) as calls:
        ours = model.generate(**call, compact_at=threshold)
    assert torch.equal(ours.sequences, unpatched.sequences)
    sizes = [len(each["input_ids"]) for each in calls]
    assert ours.stats.row_steps == sum(sizes[1:])
    if architecture == "recurrent_gemma":
        assert ours.stats.plan == "sample_only" and "keeps its state on its modules" in ours.stats.reason
        return
    assert ours.stats.plan == "full" and sizes[0] == len(LENGTHS)
    assert ours.stats.row_steps < ours.stats.row_steps_padded
    assert ours.stats.prefill_tokens == len(LENGTHS) * WIDTH


@pytest.mark.parametrize(
    "architecture", [a if a in DEFAULT_RUN else pytest.param(a, marks=pytest.mark.full) for a in DECODER_ONLY]
)
def test_a_cache_with_wrong_rows_is_noticed(architecture, monkeypatch):
    """The negative control: the comparison above fails when rows get their neighbour's KV."""
    if architecture == "recurrent_gemma":
        pytest.skip("recurrent_gemma takes plan sample_only, which moves no rows")
    model, call = shared(architecture), arguments(padded=False, samples=1)
    unpatched = model.generate(**call)
    monkeypatch.setattr(batch, "reorder", lambda cache, index, device: reorder(cache, index.roll(1), device))
    with ak.patched(model, MODES):
        ours = model.generate(**call)
    assert not torch.equal(ours.sequences, unpatched.sequences)


class TestSharedPrompts:
    ROWS = [0, 1, 0, 0, 2, 1]

    def repeated(self, **more):
        call = arguments(padded=True, samples=1)
        for name in ("input_ids", "attention_mask"):
            call[name] = call[name][self.ROWS]
        return call | more

    @pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3_next", "mamba", "gpt2"])
    def test_repeated_rows_are_computed_once(self, architecture):
        model, call = shared(architecture), self.repeated()
        unpatched = model.generate(**call)
        with ak.patched(model, MODES), forward_calls(model) as calls:
            ours = model.generate(**call)
        assert torch.equal(ours.sequences, unpatched.sequences)
        assert len(calls[0]["input_ids"]) == 3 and ours.stats.prefill_tokens == 3 * WIDTH

    def test_equal_ids_under_another_mask_are_another_prompt(self):
        ids = prompts(1, WIDTH).repeat(2, 1)
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
        model = shared("llama")
        unpatched = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
        with ak.patched(model, MODES):
            ours = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
            assert ak.last_stats(model).prefill_tokens == 2 * WIDTH
        assert torch.equal(ours, unpatched) and not torch.equal(ours[0], ours[1])

    @pytest.mark.parametrize("position_ids", [False, True])
    def test_embedded_prompts(self, position_ids):
        model, call = shared("llama"), self.repeated()
        call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids")).detach()
        if position_ids:
            call["position_ids"] = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)
        call["stopping_criteria"] = [RowLengths(0, LENGTHS)]
        unpatched = model.generate(**call)
        with ak.patched(model, MODES):
            ours = model.generate(**call)
        assert torch.equal(ours.sequences, unpatched.sequences) and ours.stats.prefill_tokens == 3 * WIDTH

    def test_repeated_rows_equal_returned_sequences(self):
        ids = prompts(3, WIDTH)
        sampling = {"do_sample": True, "top_k": 0, "seed": 5, "max_new_tokens": 9, "eos_token_id": None}
        with ak.patched(shared("llama"), MODES) as model:
            by_number = model.generate(ids, num_return_sequences=4, **sampling)
            assert ak.last_stats(model).prefill_tokens == 3 * WIDTH
            by_rows = model.generate(ids.repeat_interleave(4, 0), **sampling)
            assert ak.last_stats(model).prefill_tokens == 3 * WIDTH
        assert torch.equal(by_number, by_rows)

    @pytest.mark.parametrize("rows", [[0] * 4 + [1] * 4, [0, 1, 0, 1, 1, 0, 1, 0]], ids=["grouped", "mixed"])
    def test_a_balanced_group_of_equal_rows(self, rows):
        """TRL repeats prompts itself: one prefill, half of each group in each mode, log-probs for both halves."""
        rows = torch.tensor(rows)
        ids, settings = prompts(2, WIDTH), {"do_sample": True, "top_k": 0, "temperature": 0.7, "max_new_tokens": 9}
        settings |= {"mode": "balanced", "return_dict_in_generate": True, "return_logprobs": True, "eos_token_id": EOS}
        with ak.patched(shared("llama"), MODES) as model:
            out = model.generate(ids[rows], seed=3, **settings)
            by_number = model.generate(ids, num_return_sequences=4, seed=3, **settings)
        assert out.stats.prefill_tokens == 2 * WIDTH and out.stats.plan == "full"
        for prompt in (0, 1):
            assert out.modes[rows == prompt].tolist() == [0, 0, 1, 1]
        assert (out.sequences[:, WIDTH] == torch.where(out.modes == 0, FAST, SLOW)).all()
        if rows.tolist() == sorted(rows.tolist()):
            assert torch.equal(out.sequences, by_number.sequences)
            torch.testing.assert_close(out.logprobs, by_number.logprobs)
        with torch.no_grad():
            logits = model(out.sequences[:, :-1]).logits[:, WIDTH - 1 :].double() / 0.7
        mode = torch.log_softmax(logits[:, 0, [FAST, SLOW]], -1).gather(1, out.modes.long()[:, None])
        later = torch.log_softmax(logits[:, 1:], -1).gather(2, out.sequences[:, WIDTH + 1 :, None]).squeeze(2)
        expected = torch.cat([mode, later], 1)
        ended = (out.sequences[:, WIDTH:] == EOS).cumsum(1) - (out.sequences[:, WIDTH:] == EOS).long() > 0
        torch.testing.assert_close(out.logprobs.double(), expected.masked_fill(ended, 0.0), atol=2e-5, rtol=0)

    def test_a_balanced_group_needs_a_row_per_mode(self):
        with (
            ak.patched(shared("llama"), MODES) as model,
            pytest.raises(ValueError, match="must be at least 2; got 1 .a prompt may also come as so many equal rows"),
        ):
            model.generate(prompts(3, WIDTH)[[0, 0, 1]], mode="balanced", max_new_tokens=2)

    def test_prompts_computed_in_chunks(self):
        model, call = shared("llama"), self.repeated(prefill_chunk_size=3)
        unpatched = model.generate(**call)
        with ak.patched(model, MODES):
            ours = model.generate(**call)
        assert torch.equal(ours.sequences, unpatched.sequences) and ours.stats.prefill_tokens == 3 * WIDTH


class TestSampledTokens:
    """A row's tokens depend on its prompt and its seed, on nothing else."""

    SEEDS = torch.arange(100, 112)
    MODES = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=7), slow=SLOW)

    def sample(self, ids, seeds, modes=None, architecture="llama", **more):
        more = {"max_new_tokens": 30, "eos_token_id": [EOS, 13, 14, 15], "fast_prob": 0.6, **more}
        with ak.patched(shared(architecture), modes or self.MODES) as model:
            out = model.generate(ids, do_sample=True, top_k=0, seed=seeds, return_dict_in_generate=True, **more)
        assert out.stats.plan == "full"
        width = ids.shape[1] + more["max_new_tokens"]
        return torch.nn.functional.pad(out.sequences, (0, width - out.sequences.shape[1]), value=PAD), out

    @pytest.mark.parametrize(
        "architecture", ["llama", "gemma3_text", pytest.param("qwen3_next", marks=pytest.mark.full)]
    )
    @pytest.mark.parametrize("threshold", [0.5, 0.75, 1])
    def test_compaction_threshold(self, threshold, architecture):
        ids = prompts(12, WIDTH)
        expected, whole = self.sample(ids, self.SEEDS, architecture=architecture, compact_at=0)
        tokens, out = self.sample(ids, self.SEEDS, architecture=architecture, compact_at=threshold)
        assert torch.equal(tokens, expected)
        assert out.stats.row_steps < whole.stats.row_steps

    def test_row_order(self):
        ids, order = prompts(12, WIDTH), torch.randperm(12, generator=torch.Generator().manual_seed(0))
        expected, first = self.sample(ids, self.SEEDS)
        tokens, second = self.sample(ids[order], self.SEEDS[order])
        assert torch.equal(tokens, expected[order]) and torch.equal(second.modes, first.modes[order])
        assert set(first.modes.tolist()) == {0, 1}

    def test_batch_composition(self):
        ids = prompts(12, WIDTH)
        expected, _ = self.sample(ids, self.SEEDS)
        for rows in ([0], [3, 7], [11, 2, 2, 5, 8]):
            assert torch.equal(self.sample(ids[rows], self.SEEDS[rows])[0], expected[rows])

    def test_segment_sizes(self):
        ids = prompts(12, WIDTH)
        expected, _ = self.sample(ids, self.SEEDS)
        for early, late in ((1, None), (3, 20), (64, 64)):
            fast = ak.Mode(FAST, max_new_tokens=7, kv_tokens=early)
            modes = ak.Modes(fast=fast, slow=ak.Mode(SLOW, kv_tokens=late))
            assert torch.equal(self.sample(ids, self.SEEDS, modes)[0], expected)

    def test_a_prefix_before_the_mode_token(self):
        modes = ak.Modes(fast=(7, 8, FAST), slow=(7, 9))
        ids = prompts(12, WIDTH)
        expected, out = self.sample(ids, self.SEEDS, modes, compact_at=0)
        tokens, _ = self.sample(ids, self.SEEDS, modes, compact_at=1)
        assert torch.equal(tokens, expected) and set(out.modes.tolist()) == {0, 1}
        for rows in ([4], [9, 1, 6]):
            assert torch.equal(self.sample(ids[rows], self.SEEDS[rows], modes)[0], expected[rows])

    def test_vocabulary_is_used(self):
        tokens, _ = self.sample(prompts(12, WIDTH), self.SEEDS)
        assert len(tokens[:, WIDTH:].unique()) > VOCAB // 2


class TestSlotOrder:
    def test_slow_rows_come_first(self):
        """After the mode step the forward sees slow rows, then fast ones, which leave from the tail."""
        modes = ["fast", "slow", "fast", "slow", "fast"]
        ids, lengths = prompts(5, WIDTH), [4, 9, 4, 9, 4]
        ends = {"stopping_criteria": [RowLengths(WIDTH, lengths)], "eos_token_id": EOS, "suppress_tokens": [EOS]}
        with ak.patched(shared("llama"), SMALL_SLOW) as model, forward_calls(model) as calls:
            model.generate(ids, max_new_tokens=9, do_sample=False, mode=modes, **ends)
        fed = [each["input_ids"][:, -1].tolist() for each in calls[1:]]
        assert fed[0] == [SLOW, SLOW, FAST, FAST, FAST]
        assert [len(step) for step in fed] == [5] * 3 + [2] * 5


SMALL_SLOW = ak.Modes(fast=ak.Mode(FAST, kv_tokens=4), slow=ak.Mode(SLOW, kv_tokens=9))


@pytest.mark.parametrize("architecture", ["mamba", "lfm2", "qwen3_next"])
def test_a_subclass_keeps_its_states_where_its_base_does(architecture):
    """The class that is patched may live in a module of the caller's."""
    model = shared(architecture)
    # Releases before 5.23 know their Mambas by the name of the class.
    own = type(f"My{type(model).__name__}", (type(model),), {"__module__": __name__})
    plans = []
    for kind in (type(model), own):
        tiny = kind(model.config).eval()
        with ak.patched(tiny, ak.Modes(fast=FAST, slow=SLOW)):
            tiny.generate(prompts(2, 6), max_new_tokens=3, do_sample=False, eos_token_id=None)
            plans.append((ak.last_stats(tiny).plan, ak.last_stats(tiny).reason))
    assert plans[0] == plans[1]
