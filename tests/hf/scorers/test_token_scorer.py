"""`TokenScorer`: its target, loss, training, files, and what it makes a call keep."""

import pytest
import torch
from tiny_models import FAST, SLOW, build, left_padded, prompts, shared

import adapt_kernels as ak
from adapt_kernels.hf.scorers.token_training import SCALES, Example, answer_attention, weighted_loss

MODES = ak.Modes(fast=FAST, slow=SLOW)
SETTINGS = {"epochs": 6, "batch_size": 2, "progress": False, "seed": 3}


def examples(count=5):
    return [(ids, 4, 12) for ids in prompts(count, 18)]


@pytest.fixture
def model():
    return build("llama")


def head_of(model, **arguments):
    torch.manual_seed(0)
    return ak.TokenScorer(model, **arguments)


class TestHead:
    def test_is_a_chain_of_softplus_layers_without_bias(self, model):
        head, hidden = head_of(model, widths=(7, 5)), torch.randn(3, 32)
        expected = hidden
        for weight in [layer.weight for layer in head.layers]:
            expected = torch.log1p(torch.exp(expected @ weight.T))
        torch.testing.assert_close(head.token_scores(hidden), expected[:, 0])
        assert [tuple(p.shape) for p in head.parameters()] == [(7, 32), (5, 7), (1, 5)]
        assert head.token_scores(hidden.bfloat16()).dtype == torch.float32

    def test_default_widths_and_layers(self, model):
        assert ak.TokenScorer(model).widths == (64, 16)
        assert ak.TokenScorer(model, per_layer=True).token_scores(torch.randn(3, 32)).shape == (3, 2)

    @pytest.mark.parametrize("widths", [(), (0,), (True,), (2.5,)])
    def test_refuses_widths(self, model, widths):
        with pytest.raises(ValueError, match="widths must be positive integers"):
            ak.TokenScorer(model, widths)


class TestTarget:
    def test_is_the_attention_of_the_answer(self, model):
        ids = prompts(1, 14)[0]
        found = answer_attention(model, Example.of((ids, 3, 8), 0))
        eager = build("llama", attn_implementation="eager")
        with torch.no_grad():
            out = eager(ids[None], output_attentions=True, output_hidden_states=True)
        expected = []
        for position in range(3, 8):
            # Queries behind the closing tag, at 8; the diagonal lies outside of the thought.
            weights = [layer[0, :, query, position] for layer in out.attentions for query in range(9, 14)]
            expected.append(float(torch.stack(weights).mean()))
        torch.testing.assert_close(found.labels[:, 0], torch.tensor(expected))
        torch.testing.assert_close(found.hidden, out.hidden_states[-1][0, 3:8])
        assert model.config._attn_implementation == "sdpa"

    def test_by_layer(self, model):
        example = Example.of((prompts(1, 14)[0], 3, 8), 0)
        each = answer_attention(model, example, [0, 1]).labels
        torch.testing.assert_close(each.mean(1, keepdim=True), answer_attention(model, example).labels)

    def test_loss_weighs_the_peak(self):
        labels, scores = torch.tensor([[3.9], [4.0], [4.9], [5.0]]), torch.zeros(4, 1)
        expected = (3.9**2 + 5 * 4.0**2 + 5 * 4.9**2 + 5.0**2) / 4
        assert float(weighted_loss(scores, labels)) == pytest.approx(expected)

    def test_scales_keep_the_order(self):
        values = torch.rand(20).sort().values
        assert all((scale(values).diff() > 0).all() for scale in SCALES.values())
        assert float(SCALES["linear"](torch.tensor(2e-4))) == pytest.approx(2.0)
        assert float(SCALES["power"](torch.tensor(1.0))) == pytest.approx(10 / 0.3)


class TestFit:
    def test_learns_and_leaves_the_model_alone(self, model):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        head = head_of(model)
        losses = head.fit(model, examples(), **{**SETTINGS, "epochs": 60, "lr": 5e-3})
        assert len(losses) == 180 and losses[-1] < 0.5 * losses[0]
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert not any(parameter.grad is not None for parameter in model.parameters())
        assert not model.lm_head._forward_pre_hooks

    def test_under_inference_mode(self, model):
        with torch.inference_mode():
            head = head_of(model)
        with torch.no_grad():
            assert head_of(model).fit(model, examples(), **SETTINGS)
        assert head.widths

    @pytest.mark.parametrize("cut", [2, 3, 7])
    def test_resumes_to_the_last_bit(self, model, tmp_path, monkeypatch, cut):
        from adapt_kernels.hf.scorers import token_training

        whole = head_of(model)
        losses = whole.fit(model, examples(), **SETTINGS)
        step, taken = token_training._step, []

        def interrupted(*arguments):
            if len(taken) == cut:
                raise KeyboardInterrupt
            taken.append(1)
            return step(*arguments)

        monkeypatch.setattr(token_training, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            head_of(model).fit(model, examples(), **SETTINGS, checkpoint=tmp_path, save_every=2)
        monkeypatch.setattr(token_training, "_step", step)
        again = head_of(model)
        assert again.fit(model, examples(), **SETTINGS, checkpoint=tmp_path, save_every=2) == losses
        assert all(map(torch.equal, again.parameters(), whole.parameters()))
        assert again.fit(model, examples(), **SETTINGS, checkpoint=tmp_path) == losses
        with pytest.raises(ValueError, match="was written with seed=3, and this run has 4"):
            again.fit(model, examples(), **{**SETTINGS, "seed": 4}, checkpoint=tmp_path)

    @pytest.mark.parametrize(
        ("given", "error", "text"),
        [
            ([], ValueError, "examples must hold one sample or more"),
            ([prompts(1, 9)[0]], TypeError, r"examples\[0\] must be \(ids, start, end\)"),
            ([(prompts(1, 9)[0], 3, 3)], ValueError, "got start=3, end=3 of 9 tokens"),
            ([(prompts(1, 9)[0], 3, 8)], ValueError, "a closing tag and an answer must follow"),
            ([(torch.rand(9), 3, 5)], TypeError, "ids must be token ids"),
        ],
    )
    def test_refuses_examples(self, model, given, error, text):
        with pytest.raises(error, match=text):
            head_of(model).fit(model, given, progress=False)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [({"epochs": 0}, "epochs must be an integer >= 1; got 0"), ({"scale": "log"}, "scale must be one of 'power'")],
    )
    def test_refuses_settings(self, model, settings, text):
        with pytest.raises(ValueError, match=text):
            head_of(model).fit(model, examples(), progress=False, **settings)


class TestFiles:
    @pytest.mark.parametrize("per_layer", [False, True])
    def test_round_trip(self, model, tmp_path, per_layer):
        head, hidden = head_of(model, widths=(6,), per_layer=per_layer), torch.randn(4, 32)
        head.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"token_scorer.json", "token_scorer.safetensors"}
        # bfloat16 weights are the same model.
        again = ak.TokenScorer.from_pretrained(tmp_path, build("llama").bfloat16())
        assert torch.equal(again.token_scores(hidden), head.token_scores(hidden)) and again.per_layer == per_layer

    @pytest.mark.parametrize(
        ("other", "name"),
        [("qwen3", "model_type"), ("opt", "model_type"), ("seed", "weights")],
    )
    def test_a_head_of_another_model(self, model, tmp_path, other, name):
        head_of(model).save_pretrained(tmp_path)
        other = build("llama", seed=5) if other == "seed" else shared(other)
        text = f"this TokenScorer was trained on another model: {name} "
        with pytest.raises(ValueError, match=text):
            ak.TokenScorer.from_pretrained(tmp_path, other)
        forwards = []
        handle = other.register_forward_hook(lambda *_: forwards.append(1))
        with ak.patched(other, MODES), pytest.raises(ValueError, match=text):
            other.generate(prompts(1, 4), kv_keep=ak.KeepKV(8, 0.5, 3, head_of(model)))
        handle.remove()
        assert not forwards

    def test_an_empty_folder(self, model, tmp_path):
        with pytest.raises(ValueError, match="holds no TokenScorer: token_scorer.json is missing"):
            ak.TokenScorer.from_pretrained(tmp_path, model)


class TestGenerate:
    CALL = {"max_new_tokens": 22, "do_sample": False, "eos_token_id": None}

    @pytest.mark.parametrize("count", ["new", "all"])
    def test_the_highest_scores_stay(self, model, count, monkeypatch):
        from adapt_kernels.hf.kv.keep import Keeper

        head, settings, kept = head_of(model), None, []
        inputs = left_padded(prompts(3, 8), [8, 3, 6])
        budget = 8 if count == "new" else 18
        settings = ak.KeepKV(budget, 0.7, 3, head, count)
        evict = Keeper.evict

        def spy(keeper, *arguments):
            evict(keeper, *arguments)
            kept.append(keeper._held[0].tolist())

        monkeypatch.setattr(Keeper, "evict", spy)
        with ak.patched(model, MODES):
            out = model.generate(**inputs, **self.CALL, kv_keep=settings)
        # Until the first eviction the hidden states are those of a plain forward.
        start = 8 if count == "new" else 0
        end = start + budget + 1
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, end - 8), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = model.model(out[:, :end], attention_mask=mask, position_ids=positions).last_hidden_state
        scores = head.token_scores(states[:, start:])
        if count == "all":
            scores = scores.masked_fill(mask == 0, float("-inf"))
        protected = mask[:, start:].bool() & (torch.arange(start, end) < 8)
        expected = ak.kept_positions(scores, 3, settings.outside(budget + 1), protected)
        assert kept[0] == expected.tolist() and len(kept) >= 2
        assert not model.lm_head._forward_pre_hooks

    def test_layers_hold_sets_of_their_own(self, model):
        head = head_of(model, per_layer=True)
        with ak.patched(model, MODES):
            out = model.generate(
                prompts(3, 8), **self.CALL, kv_keep=ak.KeepKV(8, 0.5, 3, head), return_dict_in_generate=True
            )
        assert out.stats.kv_evictions >= 2

    def test_a_row_keeps_its_tokens_in_any_batch(self, model):
        settings = ak.KeepKV(8, 0.5, 3, head_of(model))
        call = {**self.CALL, "do_sample": True, "kv_keep": settings}
        with ak.patched(model, MODES):
            together = model.generate(prompts(3, 8), **call, seed=[1, 2, 3])
            for row in range(3):
                alone = model.generate(prompts(3, 8)[row : row + 1], **call, seed=[row + 1])
                assert torch.equal(alone[0], together[row])
