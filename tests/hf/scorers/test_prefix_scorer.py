"""PrefixScorer: what it computes, that the model stays what it was, training with resume, and whose scorer it is."""

import json
from threading import Thread

import pytest
import torch
from parity import CACHE
from path_calls import SAMPLES, WIDTH, check_against, generate, new
from tiny_models import build, shared

import adapt_kernels as ak
from adapt_kernels.hf.scorers.prefix_training import soft_cross_entropy

RANK = 4


def prefixes(count, seed=0):
    """Ids of several lengths, and as the label of each whether its third last token is even."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 9, (count,), generator=draw).tolist()
    ids = [torch.randint(10, 97, (length,), generator=draw).tolist() for length in lengths]
    return ids, [float(row[-3] % 2 == 0) for row in ids]


def scorer_of(model, **settings):
    return ak.PrefixScorer(model, **{"rank": RANK, "dropout": 0.0, **settings})


def whole_rows(out, count):
    """Prompt without its padding, and so many new tokens, of each row."""
    prompts = [row[row != 0].tolist() for row in out.sequences[:, :WIDTH]]
    return [prompt + row[:count].tolist() for prompt, row in zip(prompts, new(out), strict=True)]


def awake(scorer):
    """LoRA starts as nothing at all: give its second matrices values."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in scorer.parameters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=draw)
    return scorer


def test_golden_loss_and_score():
    logits = torch.tensor([[0.3, 1.1]])
    # Published with six decimals.
    assert soft_cross_entropy(logits, torch.tensor([0.25])).item() == pytest.approx(0.971101, abs=5e-7)
    assert torch.softmax(logits, -1)[0, 1].item() == pytest.approx(0.689974, abs=5e-7)


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_scores_in_a_call_are_those_of_the_prefixes(layout):
    """Left-padded prompts, several samples, and LoRA only behind the prefix."""
    scorer = awake(scorer_of(shared("llama")))
    whole = generate(kv_layout=layout)
    out = generate(ak.Paths(keep=2, at=5, score=scorer), kv_layout=layout)
    assert len(check_against(whole, out)) == 4 and out.stats.score_tokens == 8 * 5
    rows = whole_rows(whole, 5)
    # One position at a time against all at once.
    torch.testing.assert_close(out.path_scores, scorer.score(rows), atol=1e-5, rtol=1e-5)
    assert out.path_scores.std() > 1e-3
    for prompt in (0, 1):
        own = slice(prompt * SAMPLES, (prompt + 1) * SAMPLES)
        best = out.path_scores[own].topk(2).indices.tolist()
        assert [end == "length" for end in out.path_ends[own]] == [row in best for row in range(SAMPLES)]


def test_the_prefix_is_computed_without_the_adapter():
    model = shared("llama")
    scorer, ids = awake(scorer_of(model)), prefixes(1)[0][0]
    with torch.no_grad():
        plain = model(torch.tensor([ids]), output_hidden_states=True)
        mask = torch.ones(1, len(ids) + 4, dtype=torch.long)
        with scorer.adapter.active():
            given = {"inputs_embeds": scorer.embeds()[None], "attention_mask": mask, CACHE: plain[CACHE]}
            out = model(**given, output_hidden_states=True)
        expected = torch.softmax(scorer.head(out.hidden_states[-1][:, -1]), -1)[0, 1]
    assert scorer.score([ids]).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_model_stays_what_it_was():
    model = build("llama").train()
    model.get_input_embeddings().weight.requires_grad_(False)
    told = {name: (id(m), m.training) for name, m in model.named_modules()}
    learnt = {name: p.requires_grad for name, p in model.named_parameters()}
    values, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    scorer_of(model, dropout=0.1).fit(*prefixes(8), epochs=1, batch_size=4, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: (id(m), m.training) for name, m in model.named_modules()} == told
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learnt
    assert all(torch.equal(values[n], p) and p.grad is None for n, p in model.named_parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_it_learns_what_generalises():
    scorer = scorer_of(shared("llama"), rank=8, seed=2)
    settings = {"batch_size": 32, "learning_rate": 5e-3, "progress": False}
    seen = scorer.score(prefixes(64, seed=9)[0]).clone()
    history = scorer.fit(*prefixes(256), epochs=8, validation=prefixes(64, seed=9), **settings)
    assert [each["epoch"] for each in history] == list(range(1, 9)) and history[-1]["loss"] < 0.8 * history[0]["loss"]
    labels = torch.tensor(prefixes(64, seed=9)[1])
    kept = (scorer.score(prefixes(64, seed=9)[0]) - labels).square().mean().item()
    # The best epoch is what is left.
    assert kept == pytest.approx(min(each["validation"] for each in history), abs=1e-7)
    assert kept < (seen - labels).square().mean().item()


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    data, settings = prefixes(24), {"batch_size": 8, "progress": False, "validation": prefixes(8, seed=3)}
    whole = scorer_of(shared("llama"), dropout=0.2)
    history = whole.fit(*data, epochs=4, **settings)
    first = scorer_of(shared("llama"), dropout=0.2)
    first.fit(*data, epochs=2, folder=tmp_path, **settings)
    second = scorer_of(shared("llama"), dropout=0.2, seed=5)
    assert second.fit(*data, epochs=4, folder=tmp_path, **settings) == history
    assert all(torch.equal(p, second.parameters[name]) for name, p in whole.parameters.items())
    with pytest.raises(ValueError, match="holds a run of other data or settings"):
        second.fit(*prefixes(24, seed=1), epochs=4, folder=tmp_path, **settings)


def test_round_trip_and_other_models(tmp_path):
    scorer, ids = awake(scorer_of(shared("llama"), num_tokens=2)), prefixes(3)[0]
    scorer.save_pretrained(tmp_path)
    again = ak.PrefixScorer.from_pretrained(tmp_path, shared("llama"))
    assert torch.equal(again.score(ids), scorer.score(ids)) and again.settings == scorer.settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prefix_scorer.json", "prefix_scorer.safetensors"]
    other = build("llama", seed=7)
    with pytest.raises(ValueError, match="was trained on another model: weights"):
        ak.PrefixScorer.from_pretrained(tmp_path, other)
    with pytest.raises(ValueError, match="model_type 'llama', and this one has 'qwen3'"):
        ak.PrefixScorer.from_pretrained(tmp_path, shared("qwen3"))
    paths = ak.Paths(keep=1, at=3, score=scorer)
    with pytest.raises(ValueError, match="this PrefixScorer was trained on another model"):
        generate(paths, architecture="qwen3")
    copied = ak.patch(build("llama"), ak.Modes(fast=5, slow=6))
    with pytest.raises(ValueError, match="another copy of the model"):
        copied.generate(torch.tensor([[9, 9]]), paths=paths)
    told = json.loads((tmp_path / "prefix_scorer.json").read_text())
    (tmp_path / "prefix_scorer.json").write_text(json.dumps({**told, "format": 2}))
    with pytest.raises(ValueError, match="format must be 1; got 2"):
        ak.PrefixScorer.from_pretrained(tmp_path, shared("llama"))


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "mistral", "jamba"])
def test_other_architectures(architecture):
    scorer = awake(scorer_of(shared(architecture)))
    out = generate(ak.Paths(keep=1, at=4, score=scorer), architecture=architecture)
    whole = generate(architecture=architecture)
    assert len(check_against(whole, out)) == 6
    rows = whole_rows(whole, 4)
    torch.testing.assert_close(out.path_scores, scorer.score(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["jamba", "qwen3_next"])
def test_recurrent_states(architecture):
    """They are written in place, and jamba's are lost where several positions follow at once."""
    model, (ids, labels), hidden = shared(architecture), prefixes(6), []
    scorer = scorer_of(model)  # LoRA starts as nothing, so that a plain forward says the same
    shown = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: hidden.append(args[0][:, -1]))
    with torch.no_grad():
        for row in ids:
            given = [model.get_input_embeddings()(torch.tensor([row])), scorer.embeds()[None]]
            model(inputs_embeds=torch.cat(given, 1), use_cache=False)
        shown.remove()
        plain = torch.softmax(scorer.head(torch.cat(hidden)), -1)[:, 1]
    torch.testing.assert_close(scorer.score(ids), plain, atol=1e-5, rtol=1e-5)
    losses = [each["loss"] for each in scorer.fit(ids, labels, epochs=6, learning_rate=0.01, progress=False)]
    assert losses[-1] < losses[0] - 0.1


def test_the_first_vector_is_what_the_model_is_fed():
    model = shared("gemma3_text")  # whose embeddings are scaled on their way in
    with torch.no_grad():
        fed = model.get_input_embeddings()(torch.arange(97))
    assert not torch.equal(fed, model.get_input_embeddings().weight)
    torch.testing.assert_close(scorer_of(model, init_token=7).vector.data, fed[7])
    torch.testing.assert_close(scorer_of(model).vector.data, fed.mean(0))
    for token in (97, -1, 1.0):
        with pytest.raises(ValueError, match=f"init_token must be an id of the vocabulary, 0 to 96; got {token}"):
            scorer_of(model, init_token=token)


def test_refused():
    with pytest.raises(ValueError, match=r"no module named q_proj or v_proj: pass targets="):
        ak.PrefixScorer(shared("gpt2"))
    with pytest.raises(ValueError, match="rank must be an integer of at least 1; got 0"):
        ak.PrefixScorer(shared("llama"), rank=0)
    scorer = scorer_of(shared("llama"))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\]; got 1.5"):
        scorer.fit([[5, 6]], [1.5])
    with pytest.raises(ValueError, match="one number per prefix"):
        scorer.fit([[5, 6]], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"prefixes\[1\] must be one or more token ids"):
        scorer.fit([[5, 6], []], [1.0, 0.0])
    with pytest.raises(ValueError, match="epochs must be an integer of at least 1"):
        scorer.fit([[5, 6]], [1.0], epochs=0)
    with pytest.raises(ValueError, match="PrefixScorer cannot score the rows of this call: there is no cache"):
        generate(ak.Paths(keep=1, at=3, score=scorer), use_cache=False)


def test_other_threads_compute_without_the_adapter():
    model, ids = shared("llama"), torch.tensor([[9, 8, 7]])
    scorer, found = awake(scorer_of(model)), []
    with torch.no_grad(), scorer.adapter.active():
        own = model(ids).logits
        thread = Thread(target=lambda: found.append(model(ids).logits))
        thread.start()
        thread.join()
    plain = model(ids).logits
    assert torch.equal(found[0], plain) and not torch.allclose(own, plain)
