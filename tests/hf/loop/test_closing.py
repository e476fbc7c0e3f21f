"""Mode.closing: forced at the cap, exactly there, on rows that have not closed by themselves; then free decoding."""

import pytest
import torch
from recorders import RowLengths, forward_calls
from tiny_models import EOS, FAST, PAD, SLOW, build, left_padded, prompts, shared

import adapt_kernels as ak

WIDTH, NEW, CAP = 6, 14, 5
CLOSING = (8, 9)
END = CAP + len(CLOSING)
MODES = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=CLOSING))
PLAIN = ak.Modes(fast=FAST, slow=SLOW)
MIXED = ["slow", "fast", "slow", "slow"]


def generate(ids, modes=MODES, architecture="llama", **arguments):
    arguments = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **arguments}
    with ak.patched(shared(architecture), modes) as model:
        return model.generate(ids, return_dict_in_generate=True, **arguments)


def continued(ids, new: int, architecture="llama"):
    # The mask says that a pad token which the model chose is no padding.
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    return shared(architecture).generate(ids, **settings)


def append(ids, *tokens):
    return torch.cat([ids, torch.tensor(tokens).expand(len(ids), -1)], 1)


@pytest.mark.parametrize(
    ("plan", "more"),
    [
        ("full", {}),
        ("full", {"kv_layout": "shared"}),
        ("sample_only", {"output_logits": True}),
        ("sample_only", {"rng": "hf"}),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "falcon_h1"])
def test_greedy_tokens_are_those_of_the_model_before_and_after(architecture, plan, more):
    if architecture == "falcon_h1" and "kv_layout" in more:
        more = {"compact_at": 1}
    ids = prompts(4, WIDTH)
    out = generate(ids, architecture=architecture, mode=MIXED, **more)
    thought = continued(append(ids, SLOW), CAP - 1, architecture)
    slow = continued(append(thought, *CLOSING), NEW - END, architecture)
    fast = continued(append(ids, FAST), NEW - 1, architecture)
    of_slow = torch.tensor([mode == "slow" for mode in MIXED])[:, None]
    assert torch.equal(out.sequences, torch.where(of_slow, slow, fast))
    assert out.modes.tolist() == [1, 0, 1, 1] and out.stats.plan == plan


@pytest.mark.parametrize(
    "sampling", [{"top_k": 0}, {"top_k": 20, "top_p": 0.9, "temperature": 0.7}, {"typical_p": 0.9}]
)
def test_sampled_tokens_before_the_cap_are_those_without_it(sampling):
    ids, arguments = prompts(4, WIDTH), {"do_sample": True, "seed": 3, "mode": MIXED, **sampling}
    capped, free = (generate(ids, modes, **arguments).sequences for modes in (MODES, PLAIN))
    assert torch.equal(capped[:, : WIDTH + CAP], free[:, : WIDTH + CAP])
    assert torch.equal(capped[1], free[1])
    slow = capped[[0, 2, 3], WIDTH + CAP :]
    assert (slow[:, : len(CLOSING)] == torch.tensor(CLOSING)).all()
    assert len(slow[:, len(CLOSING) :].unique()) > 2 * len(slow)


@pytest.mark.parametrize("rng", [None, "hf"])
def test_a_row_that_closed_by_itself_is_left_alone(rng):
    ids = prompts(6, WIDTH)
    free = generate(ids, PLAIN, mode="slow").sequences
    # Row 0 writes the closing by itself, as the last tokens before the cap.
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=free[0, WIDTH + 3 : WIDTH + 5].tolist()))
    out = generate(ids, modes, mode="slow", rng=rng).sequences
    assert torch.equal(out[0], free[0])
    closing = modes["slow"].closing
    # Row 4 has just begun to write it, and gets the time to go on.
    assert free[4, WIDTH + CAP - 1] == closing[0]
    ends = [CAP + (row == 4) for row in range(1, 6)]
    assert [tuple(out[row, WIDTH + end :][:2].tolist()) for row, end in enumerate(ends, 1)] == [closing] * 5
    assert torch.equal(out[4, : WIDTH + CAP + 1], free[4, : WIDTH + CAP + 1])


def test_closing_tokens_in_the_prompt_do_not_count():
    ids = prompts(2, WIDTH)
    ids[:, -2:] = torch.tensor(CLOSING)
    out = generate(ids, mode="slow").sequences
    assert (out[:, WIDTH + CAP : WIDTH + END] == torch.tensor(CLOSING)).all()


def test_a_mode_opened_by_the_prompt_closes_after_as_many_new_tokens():
    ids = append(prompts(3, WIDTH), SLOW)
    out = generate(ids)
    thought = continued(ids, CAP)
    assert torch.equal(out.sequences, continued(append(thought, *CLOSING), NEW - END))


class TestSampledRows:
    """A row's tokens depend on its prompt and its seed, also where it closes."""

    SEEDS = torch.arange(50, 62)
    BOTH = ak.Modes(
        fast=ak.Mode(FAST, max_new_tokens=3, closing=(8, 20, 21)), slow=ak.Mode(SLOW, max_new_tokens=5, closing=9)
    )

    def sample(self, rows, modes=BOTH, **more):
        ids, seeds = prompts(12, WIDTH)[rows], self.SEEDS[rows]
        more = {"max_new_tokens": 24, "eos_token_id": [EOS, 13, 14, 15], "fast_prob": 0.5, **more}
        out = generate(ids, modes, do_sample=True, top_k=0, seed=seeds, **more)
        padding = (0, WIDTH + 24 - out.sequences.shape[1])
        return torch.nn.functional.pad(out.sequences, padding, value=PAD), out

    def test_compaction(self):
        rows = torch.arange(12)
        expected, whole = self.sample(rows, compact_at=0)
        for share in (0.5, 0.75, 1):
            tokens, out = self.sample(rows, compact_at=share)
            assert torch.equal(tokens, expected) and out.stats.row_steps < whole.stats.row_steps
        assert set(whole.modes.tolist()) == {0, 1}

    def test_batch_composition(self):
        expected, _ = self.sample(torch.arange(12), compact_at=1)
        for rows in ([4], [9, 1, 6], list(range(11, -1, -1))):
            assert torch.equal(self.sample(rows)[0], expected[rows])

    def test_each_mode_closes_at_its_own_cap(self):
        tokens, out = self.sample(torch.arange(12))
        new, closed = tokens[:, WIDTH:], 0
        for row, mode in enumerate(out.modes.tolist()):
            mode = self.BOTH[("fast", "slow")[mode]]
            # 13, 14 and 15 are the ends of these calls; no forced token is one.
            alive = not set(new[row, : mode.max_new_tokens].tolist()) & {EOS, 13, 14, 15}
            forced = tuple(new[row, mode.max_new_tokens :][: len(mode.closing)].tolist())
            assert (forced == mode.closing) == alive
            closed += alive
        assert 12 > closed >= 6


def test_logprobs_of_forced_tokens_are_the_models():
    out = generate(
        prompts(3, WIDTH), mode="slow", do_sample=True, seed=2, top_k=0, temperature=0.7, return_logprobs=True
    )
    with torch.no_grad():
        logits = shared("llama")(out.sequences).logits[:, WIDTH:-1].double() / 0.7
    own = torch.log_softmax(logits, -1).gather(2, out.sequences[:, WIDTH + 1 :, None])[..., 0]
    torch.testing.assert_close(out.logprobs[:, 1:].double(), own, atol=1e-4, rtol=1e-4)


def test_forced_although_a_processor_bans_it():
    out = generate(prompts(2, WIDTH), mode="slow", suppress_tokens=list(CLOSING))
    assert (out.sequences[:, WIDTH + CAP : WIDTH + END] == torch.tensor(CLOSING)).all()


@pytest.mark.parametrize("new", [CAP, CAP + 1])
def test_max_length_cuts_the_closing(new):
    out, whole = (generate(prompts(2, WIDTH), mode="slow", max_new_tokens=n).sequences for n in (new, NEW))
    assert torch.equal(out, whole[:, : WIDTH + new])


def test_an_ended_row_is_padded_not_closed():
    ends = [RowLengths(WIDTH, [3, NEW])]
    arguments = {"stopping_criteria": ends, "eos_token_id": EOS, "suppress_tokens": [EOS], "compact_at": 0}
    out = generate(prompts(2, WIDTH), mode="slow", **arguments).sequences
    assert (out[0, WIDTH + 3 :] == PAD).all() and out[1, WIDTH + CAP : WIDTH + END].tolist() == list(CLOSING)


def test_eos_as_closing_ends_the_row():
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=(8, EOS)))
    out = generate(prompts(2, WIDTH), modes, mode=["slow", "fast"], eos_token_id=EOS, min_new_tokens=NEW)
    assert out.sequences[0, WIDTH + CAP :].tolist() == [8, EOS] + [PAD] * (NEW - END)


def test_left_padding_and_samples():
    ids = prompts(2, WIDTH)
    arguments = {**left_padded(ids, [6, 3]), "do_sample": True, "top_k": 1, "num_return_sequences": 3}
    out = generate(arguments.pop("input_ids"), mode="balanced", **arguments).sequences
    closed = (out[:, WIDTH + CAP : WIDTH + END] == torch.tensor(CLOSING)).all(1)
    assert closed.tolist() == [False, False, True] * 2


def test_needs_no_pad_token():
    model = build("llama", pad_token_id=None)
    with ak.patched(model, MODES):
        out = model.generate(prompts(2, WIDTH), mode="slow", max_new_tokens=NEW, eos_token_id=None)
    assert out.shape[1] == WIDTH + NEW


def test_an_id_outside_the_vocabulary():
    with pytest.raises(ValueError, match="mode 'slow': token id 500 is outside"):
        ak.patch(shared("llama"), ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=3, closing=(8, 500))))


def test_a_call_that_cannot_close_is_refused():
    with ak.patched(shared("llama"), MODES) as model, forward_calls(model) as calls:
        with pytest.raises(ValueError, match="Mode.max_new_tokens of 'slow' cannot be honoured by this call: beam"):
            model.generate(prompts(2, WIDTH), max_new_tokens=3, num_beams=2)
        assert calls == []
