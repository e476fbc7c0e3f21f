"""generate(paths=): every corner has its rule: groups, ends, scores, streamers, refusals."""

import math

import pytest
import torch
from parity import CACHE
from path_calls import BASE, MODES, NEW, SAMPLES, WIDTH, check_against, generate, inputs, new
from recorders import RecordingStreamer, forward_calls
from tiny_models import EOS, FAST, PAD, SLOW, prompts, shared

import adapt_kernels as ak
from adapt_kernels.hf.loop import decode_loop


def test_halving():
    out = generate(ak.Paths(keep=1, at=(4, 8), score="random"), lengths=(8,))
    assert sorted(out.lengths.tolist()) == [4, 4, 8, NEW]
    out = generate(ak.Paths(keep=0.5, at=(4, 8), score="random"), lengths=(8,))
    assert sorted(out.lengths.tolist()) == [4, 4, 8, NEW]
    assert sorted(out.path_ends) == ["length", "pruned", "pruned", "pruned"]


def test_groups_are_prompts_wherever_their_rows_stand():
    ids = prompts(2, WIDTH)[[0, 1, 0, 1, 0]]
    with ak.patched(shared("llama"), MODES) as model:
        seen = []
        paths = ak.Paths(keep=1, at=3, score=lambda view: seen.append(view) or view.rows)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=PAD, paths=paths, **BASE
        )
    assert out.path_ends == ["pruned", "pruned", "pruned", "length", "length"]
    assert seen[0].prompt_of_row.tolist() == out.prompt_of_row.tolist() == [0, 1, 0, 1, 0]
    assert seen[0].lengths.tolist() == [3] * 5 and torch.equal(seen[0].ids, new(out)[:, :3])


def test_per_mode():
    out = generate(ak.Paths(keep=1, at=3, score="random", per_mode=True), lengths=(8,), mode="balanced")
    kept = [row for row, end in enumerate(out.path_ends) if end != "pruned"]
    assert sorted(out.modes[kept].tolist()) == [0, 1]


def test_scores_are_the_models_own():
    """Of its distribution at T = 1, whatever the call's settings."""
    seen = []
    more = {"temperature": 0.6, "output_logits": True, "lengths": (8,)}

    def scores(kind):
        return generate(ak.Paths(keep=2, at=5, score=kind, top=3, window=2), **more).path_scores

    paths = ak.Paths(keep=2, at=5, score=lambda view: seen.append(view) or view.rows, top=3, window=2)
    whole = generate(paths, **more)
    logp = torch.stack(whole.logits, 1)[:, :5].log_softmax(-1)
    confidence = -logp.topk(3, -1).values.mean(-1)
    drawn = logp.gather(2, new(whole)[:, :5, None])[..., 0]
    # float32 sums in another order
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(scores("confidence"), confidence.unfold(1, 2, 1).mean(-1).amin(1), **close)
    torch.testing.assert_close(scores("logprob"), drawn.mean(1), **close)
    torch.testing.assert_close(seen[0].logprob_sums.float(), drawn.sum(1), **close)
    torch.testing.assert_close(seen[0].confidence_sums.float(), confidence.sum(1), **close)


@pytest.mark.parametrize("layout", ["rows", "shared"])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_appended_positions(layout, at):
    """Hidden states of a plain forward over the row's whole sequence and the embeddings; the call goes on unmoved."""
    model, found = shared("llama"), []
    table = model.get_input_embeddings().weight
    embeds = table[[7, 8, 9]].detach()

    def score(view):
        found.append((view, view.append(embeds), view.append(table[7:8].detach().expand(len(view.rows), 1, -1))))
        return view.rows

    out = generate(ak.Paths(keep=2, at=at, score=score), kv_layout=layout)
    plain = generate(kv_layout=layout)
    check_against(plain, out)
    view, hidden, first = found[0]
    given = {name: tensor.repeat_interleave(SAMPLES, 0) for name, tensor in inputs().items()}
    ids = torch.cat([given["input_ids"], new(plain)[:, :at]], 1)
    mask = torch.cat([given["attention_mask"], torch.ones(8, at + 3, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        both = torch.cat([table[ids], embeds.expand(8, 3, -1)], 1)
        states = model.model(inputs_embeds=both, attention_mask=mask, position_ids=positions).last_hidden_state
    # One position at a time against all at once.
    torch.testing.assert_close(hidden, states[:, -3:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[:, 0], states[:, -3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(view.last_hidden, states[:, -5], atol=1e-5, rtol=1e-4)
    assert out.stats.score_tokens == 8 * (4 + 2)


def test_agreement_ends_the_prompt():
    ends = [3, 5, None, None, 4, None, None, None]
    agree = ak.Agree(k=2, answer=lambda ids: len(ids) > 2)
    out = generate(ak.Paths(agree=agree), ends=ends)
    assert out.path_ends[:4] == ["finished", "finished", "agreed", "agreed"]
    assert out.path_ends[4:] == ["finished", "length", "length", "length"]
    assert out.lengths.tolist() == [3, 5, 5, 5, 4, NEW, NEW, NEW]
    check_against(generate(ends=ends), out)
    asked = []
    generate(ak.Paths(agree=ak.Agree(k=1, answer=lambda ids: asked.append(ids.tolist()))), ends=ends)
    assert [len(ids) for ids in asked] == [3, 4, 5]  # once per row, None is no vote


def test_rows_below_a_number_end():
    whole = generate(output_logits=True)
    confidence = -torch.stack(whole.logits, 1).log_softmax(-1).topk(20, -1).values.mean(-1)
    windows = confidence.unfold(1, 3, 1).mean(-1)
    bar = windows.amin(1).median().item() + 1e-4
    out = generate(ak.Paths(below=bar, window=3), output_logits=True)
    first = [next((i + 3 for i, w in enumerate(row) if w < bar), NEW) for row in windows.tolist()]
    assert out.lengths.tolist() == first and 0 < out.path_ends.count("below") < 8
    check_against(whole, out)


def test_rows_below_a_bar_end():
    """The bar stands when the warm-up rows have ended, and those never end by it."""
    ends = [4, 6, None, None, None, None, None, None]
    out = generate(ak.Paths(below=ak.Bar(99, warmup=2), window=2), lengths=(8,), num_return_sequences=8, ends=ends)
    assert out.path_ends[:2] == ["finished"] * 2 and "below" in out.path_ends
    assert min(n for n, end in zip(out.lengths.tolist(), out.path_ends, strict=True) if end == "below") >= 6
    check_against(generate(lengths=(8,), num_return_sequences=8, ends=ends), out)
    late = generate(ak.Paths(below=ak.Bar(50, warmup=2), window=2))
    assert set(late.path_ends) == {"length"} and "warm-up rows were unfinished" in late.stats.inactive[0]


def test_why_settings_were_inactive():
    assert generate(ak.Paths(below=99.0)).stats.inactive == ("below=99.0: no row reached a full window of 2048 tokens",)
    out = generate(ak.Paths(agree=ak.Agree(k=1, answer=len)))
    assert out.stats.inactive == ("agree: no row ended while another one of its prompt was unfinished",)


def test_finished_and_cut_by_a_length():
    with ak.patched(shared("llama"), ak.Modes(fast=ak.Mode(FAST, max_new_tokens=3), slow=SLOW)) as model:
        settings = {**BASE, "suppress_tokens": [EOS], "num_return_sequences": 2, "mode": ["fast", "slow"]}
        out = model.generate(**inputs((8,)), paths=ak.Paths(keep=1, at=9), **settings)
    assert out.path_ends == ["length", "length"] and out.lengths.tolist() == [3, NEW]
    # A row's EOS at the last step ends it by itself.
    assert generate(ak.Paths(keep=1, at=NEW), ends=[NEW] + [None] * 7).path_ends[0] == "finished"


def test_streamers_see_padding():
    streamer = RecordingStreamer()
    with ak.patched(shared("llama"), MODES) as model:
        ids = prompts(1, WIDTH).repeat(3, 1)
        paths = ak.Paths(keep=1, at=2, score=lambda view: view.rows)
        more = {"suppress_tokens": [EOS], "streamer": streamer, "paths": paths}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **BASE, **more)
    steps = [call[2] for call in streamer.calls[1:-1]]
    assert torch.equal(torch.tensor(steps).T, new(out)) and all(step[:2] == [PAD, PAD] for step in steps[2:])


def test_stop_criteria_see_all_rows_in_order():
    seen = []

    def criterion(ids, scores, **kwargs):
        seen.append(ids.clone())
        return torch.zeros(len(ids), dtype=torch.bool)

    out = generate(ak.Paths(keep=1, at=3, score="random"), stopping_criteria=[criterion])
    assert torch.equal(seen[-1], out.sequences) and {len(ids) for ids in seen} == {8}


def test_the_returned_cache_is_whole():
    out = generate(ak.Paths(keep=1, at=6, score="random"))
    cache = out[CACHE]
    assert cache.get_seq_length() == WIDTH + NEW - 1 and len(cache.layers[0].keys) == 8


def test_random_scores_come_from_the_rows_seeds():
    paths = ak.Paths(keep=2, at=4, score="random")
    assert torch.equal(generate(paths).path_scores, generate(paths, compact_at=0.0, kv_layout="shared").path_scores)
    assert not torch.equal(generate(paths).path_scores, generate(paths, seed=12).path_scores)
    alone = generate(
        ak.Paths(keep=2, at=4, score="random"), seed=[ak.row_seed(11, row) for row in range(4)], lengths=(8,)
    )
    assert torch.equal(alone.path_scores, generate(paths).path_scores[:4])
    torch.manual_seed(0)
    greedy = [generate(paths, do_sample=False, seed=None).path_scores for _ in range(2)]
    assert not torch.equal(*greedy)


@pytest.mark.parametrize("more", [{}, {"ends": [None, 3, None, 5, None, None, None, 7]}])
def test_a_late_stop_check_changes_nothing(monkeypatch, more):
    paths = ak.Paths(keep=1, at=5, score="random")
    on_time = generate(paths, **more)
    monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
    late = generate(paths, **more)
    assert torch.equal(late.sequences, on_time.sequences) and late.path_ends == on_time.path_ends


def test_bits_of_ties_and_nan():
    def ends(scores):
        return generate(ak.Paths(keep=2, at=4, score=lambda view: scores), lengths=(8,)).path_ends

    assert ends([1, 1, 1, 1]) == ["length", "length", "pruned", "pruned"]
    assert ends([math.nan, -math.inf, math.nan, 0]) == ["pruned", "length", "pruned", "length"]


REFUSED = [
    ({"output_attentions": True}, ValueError, "output_attentions shows what every row computes"),
    ({"eos_token_id": None, "pad_token_id": None}, ValueError, "paths needs a pad token"),
    ({"num_beams": 2}, ValueError, "paths cannot be honoured by this call: beam sample"),
    ({"rng": "hf", "seed": None, "score": "random"}, ValueError, "score='random' draws from a stream of each row"),
]


@pytest.mark.parametrize(("more", "kind", "text"), REFUSED)
def test_refused_before_anything_is_computed(more, kind, text):
    settings = {**BASE, "num_return_sequences": 2, **more}
    paths = ak.Paths(keep=1, at=3, score=settings.pop("score", "confidence"))
    model = shared("llama")
    if "eos_token_id" in more:
        model.generation_config.eos_token_id, kept = None, model.generation_config.eos_token_id
        model.generation_config.pad_token_id, pad = None, model.generation_config.pad_token_id
    try:
        with ak.patched(model, MODES), forward_calls(model) as calls, pytest.raises(kind, match=text):
            model.generate(**inputs(), paths=paths, **settings)
    finally:
        if "eos_token_id" in more:
            model.generation_config.eos_token_id, model.generation_config.pad_token_id = kept, pad
    assert calls == []


def test_refused_arguments():
    with ak.patched(shared("llama"), MODES) as model:
        with pytest.raises(TypeError, match="paths must be an adapt_kernels.Paths; got 4"):
            model.generate(**inputs(), paths=4)
        with pytest.raises(ValueError, match="paths cannot be honoured by generate_batch"):
            model.generate_batch([[1, 2]], paths=ak.Paths(keep=1, at=2))
        out = model.generate(**inputs((8,)), max_new_tokens=2, return_dict_in_generate=True)
        with pytest.raises(ValueError, match="belongs to the caller"):
            model.generate(out.sequences, paths=ak.Paths(keep=1, at=2), **{CACHE: out[CACHE]})


def broken(ids):
    raise ZeroDivisionError("no answer")


@pytest.mark.parametrize(
    ("paths", "kind", "text"),
    [
        (ak.Paths(keep=1, at=3, score=broken), ZeroDivisionError, "no answer"),
        (ak.Paths(agree=ak.Agree(k=2, answer=broken)), ZeroDivisionError, "no answer"),
        (ak.Paths(agree=ak.Agree(k=2, answer=list)), TypeError, "something hashable"),
        (ak.Paths(keep=1, at=3, score=lambda view: [1.0]), ValueError, r"shape \(8,\); got shape \(1,\)"),
        (ak.Paths(keep=1, at=3, score=lambda view: None), TypeError, "one number per row"),
        (ak.Paths(keep=1, at=3, score=lambda view: [math.nan] * 8), ValueError, "all 4 scores of a prompt are NaN"),
        (ak.Paths(keep=1, at=3, score=lambda view: view.append(torch.ones(3))), ValueError, r"\[q, h\]"),
    ],
)
def test_nothing_is_lost_when_a_users_function_fails(paths, kind, text):
    ends = [3, None, None, None, None, None, None, None] if paths.agree is not None else None
    with pytest.raises(kind, match=text) as caught:
        generate(paths, ends=ends)
    assert "new tokens so far" in caught.value.__notes__[0]
    whole = generate(ends=ends)
    assert torch.equal(caught.value.sequences, new(whole)[:, :3])
    head = shared("llama").get_output_embeddings()
    assert not head._forward_pre_hooks


def test_append_is_refused_with_a_reason():
    paths = ak.Paths(keep=1, at=3, score=lambda view: view.append(torch.ones(1, 32))[:, 0, 0])
    with pytest.raises(ValueError, match="append cannot serve this call: there is no cache to branch"):
        generate(paths, use_cache=False)
