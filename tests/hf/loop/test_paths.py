"""generate(paths=): kept rows have the tokens of the call without it, and the others leave the batch."""

import math

import pytest
import torch
from path_calls import BASE, CASES, MODES, NEW, SAMPLES, check_against, generate, inputs
from recorders import forward_calls
from tiny_models import EOS, FAST, SLOW, shared

import adapt_kernels as ak

SCORES = ("confidence", "random", lambda view: -view.rows.double())
# rng="hf" has no stream of a row to draw a random score from.
POINTS = [(name, score) for name in CASES for score in SCORES if (name, score) != ("their sampler", "random")]


@pytest.mark.parametrize(("name", "score"), POINTS)
def test_kept_rows_have_their_tokens(name, score):
    torch.manual_seed(3)
    whole = generate(**CASES[name])
    torch.manual_seed(3)
    pruned = generate(ak.Paths(keep=2, at=6, score=score), **CASES[name])
    cut = check_against(whole, pruned)
    groups = [row // SAMPLES for row in range(len(pruned.path_ends))]
    done = [row for row, n in enumerate(whole.lengths.tolist()) if n <= 6]
    for prompt in set(groups):
        members = [row for row, group in enumerate(groups) if group == prompt and row not in done]
        assert len([row for row in members if row not in cut]) == 2
    assert {pruned.lengths[row].item() for row in cut} == {6}
    assert [math.isnan(each) for each in pruned.path_scores.tolist()] == [r in done for r in range(len(groups))]
    assert (
        pruned.stats.plan == whole.stats.plan == ("sample_only" if name in ("sample_only", "their sampler") else "full")
    )
    assert pruned.stats.inactive == () and pruned.stats.tokens_saved == len(cut) * (NEW - 6)
    if callable(score):
        alive = [row for row in range(len(groups)) if row not in done]
        kept = [r for p in set(groups) for r in [r for r in alive if groups[r] == p][:2]]
        assert [r for r in alive if r not in cut] == sorted(kept)
    if pruned.logprobs is not None:
        close = torch.isclose(pruned.logprobs, whole.logprobs, atol=1e-5)  # rounding depends on the size of the batch
        assert all(close[row, :n].all() for row, n in enumerate(pruned.lengths.tolist()))


@pytest.mark.parametrize("architecture", ["gemma3_text", "lfm2", "mistral", "gpt2", "deepseek_v3"])
def test_other_caches(architecture):
    def score(view):
        hidden = view.append(torch.ones(2, 32))
        assert hidden.shape == (len(view.rows), 2, 32) and view.last_hidden.shape == (len(view.rows), 32)
        return hidden[:, -1, 0]

    whole = generate(architecture=architecture)
    pruned = generate(ak.Paths(keep=1, at=5, score=score), architecture=architecture)
    assert len(check_against(whole, pruned)) == 6


def test_rows_really_leave():
    with ak.patched(shared("llama"), MODES) as model, forward_calls(model) as calls:
        settings = {**BASE, "num_return_sequences": SAMPLES, "suppress_tokens": [EOS], "compact_at": 0.0}
        out = model.generate(**inputs(), paths=ak.Paths(keep=1, at=6, score="random"), **settings)
    sizes = [len(call["input_ids"]) for call in calls]
    # Each prompt once; then every row up to its sixth token, then those that were kept.
    assert sizes == [2] + [8] * 5 + [2] * (NEW - 6)
    assert out.stats.row_steps == sum(sizes[1:]) and out.stats.row_steps_padded == 8 * (NEW - 1)


def test_kv_is_given_back_at_once():
    """The peak is that of the step at which rows leave, not twice that."""
    modes = ak.Modes(fast=ak.Mode(FAST, kv_tokens=4), slow=SLOW)
    more = {"lengths": (8,), "num_return_sequences": 16, "max_new_tokens": 60, "modes": modes, "compact_at": 0.0}
    whole = generate(**more)
    pruned = generate(ak.Paths(keep=2, at=4, score="random"), **more)
    position = 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, head_dim, bytes
    assert whole.stats.kv_bytes_peak >= 16 * (8 + 59) * position
    assert pruned.stats.kv_bytes_peak <= 16 * (8 + 4) * position + 2 * 16 * (8 + 4) * position // 2


@pytest.mark.parametrize("name", CASES)
def test_never_reached_is_the_call_without_it(name):
    torch.manual_seed(5)
    plain = generate(**CASES[name])
    torch.manual_seed(5)
    out = generate(ak.Paths(keep=1, at=NEW, score="confidence"), **CASES[name])
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.lengths, plain.lengths)
    assert torch.equal(out.mode_probs, plain.mode_probs) and torch.equal(out.modes, plain.modes)
    if plain.logprobs is not None:
        assert torch.equal(out.logprobs, plain.logprobs)
    assert (out.stats.row_steps, out.stats.kv_bytes_peak) == (plain.stats.row_steps, plain.stats.kv_bytes_peak)
    assert out.stats.inactive == (f"keep=1: no row was unfinished at {NEW} new tokens",)
    assert out.path_scores.isnan().all() and out.stats.tokens_saved == 0
    assert set(out.path_ends) <= {"length", "finished"}


def test_nothing_to_drop_is_the_call_without_it():
    plain = generate()
    out = generate(ak.Paths(keep=SAMPLES, at=6, score=lambda view: view.append(torch.ones(1, 32))[:, 0, 0]))
    assert torch.equal(out.sequences, plain.sequences) and set(out.path_ends) == {"length"}
    assert out.stats.inactive == ("keep=4: no prompt had more unfinished rows at [6] new tokens",)
    assert not out.path_scores.isnan().any() and out.stats.score_tokens == 16 and out.stats.tokens_saved == 0
