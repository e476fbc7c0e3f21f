"""A step that leaves a sampled row nothing to draw raises, as Hugging Face's own sampling does."""

import pytest
import torch
from parity import MODES
from recorders import RowLengths
from tiny_models import EOS, FAST, SLOW, build, prompts
from transformers import LogitsProcessor, LogitsProcessorList

import adapt_kernels as ak
from adapt_kernels.hf.loop import decode_loop

INF, NAN = float("inf"), float("nan")
SAMPLED = {"do_sample": True, "max_new_tokens": 6, "eos_token_id": None, "seed": 3}
TEXT = "row 1: no token is left to draw: its logits are all -inf or NaN, or hold \\+inf. Allow a token"


class Breaks(LogitsProcessor):
    """Sets the logits of some rows from one step on."""

    def __init__(self, value, step=2, rows=(1,), columns=slice(None)):
        self.value, self.step, self.rows, self.columns, self.seen = value, step, list(rows), columns, 0

    def __call__(self, input_ids, scores):
        self.seen += 1
        if self.seen > self.step:
            scores = scores.clone()
            scores[self.rows, self.columns] = self.value
        return scores


def broken_model(value, step=2, row=1, columns=slice(None)):
    """The model itself gives such logits, so that every plan meets them."""
    model, seen = build("llama"), []

    def break_row(module, args, output):
        seen.append(1)
        if len(seen) > step and len(output.logits) > row:
            output.logits[row, :, columns] = value

    model.register_forward_hook(break_row)
    return model


@pytest.mark.parametrize("value", [-INF, NAN])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_all_logits(value, step):
    model = ak.patch(broken_model(value, step), MODES)
    with pytest.raises(RuntimeError, match=TEXT):
        model.generate(prompts(3, 6), **SAMPLED)
    assert ak.last_stats(model) is None
    with pytest.raises(RuntimeError):
        broken_model(value, step).generate(prompts(3, 6), do_sample=True, max_new_tokens=6, eos_token_id=None)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.9, "temperature": 0.5}, {"typical_p": 0.9}])
def test_one_infinite_logit(settings):
    with ak.patched(broken_model(INF, columns=7), MODES) as model, pytest.raises(RuntimeError, match=TEXT):
        model.generate(prompts(3, 6), **SAMPLED, **settings)


@pytest.mark.parametrize("rows", [(1,), (1, 2)])
def test_masked_by_a_processor(rows):
    processors = LogitsProcessorList([Breaks(-INF, rows=rows)])
    with ak.patched(build("llama"), MODES) as model, pytest.raises(RuntimeError, match=TEXT):
        model.generate(prompts(3, 6), logits_processor=processors, **SAMPLED)


def test_after_the_gate_and_in_moved_rows():
    modes = ak.Modes(fast=ak.Mode(FAST, kv_tokens=2), slow=ak.Mode(SLOW, kv_tokens=6))
    model = ak.patch(broken_model(NAN, step=3, row=0), modes)
    # Slow rows come first in the batch: slot 0 is row 2 there.
    with pytest.raises(RuntimeError, match="row 2: no token is left to draw"):
        model.generate(prompts(3, 6), mode=["fast", "fast", "slow"], **SAMPLED)


class TestWhatDoesNotRaise:
    @pytest.mark.parametrize("value", [-INF, NAN, INF])
    def test_greedy(self, value):
        unpatched = broken_model(value).generate(prompts(3, 6), max_new_tokens=5, do_sample=False, eos_token_id=None)
        with ak.patched(broken_model(value), MODES) as model:
            ours = model.generate(prompts(3, 6), max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert torch.equal(ours, unpatched)

    def test_rows_that_have_ended(self):
        ends = [RowLengths(6, [6, 2, 6])]
        arguments = {**SAMPLED, "eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": ends}
        model = ak.patch(broken_model(NAN, step=2), MODES)
        with pytest.warns(UserWarning, match="NaN logits in 1 of 3 rows"):
            out = model.generate(prompts(3, 6), compact_at=0, **arguments)
        assert out.shape == (3, 12)

    def test_forced_tokens(self):
        modes = ak.Modes(fast=(FAST, 8, 9), slow=(SLOW, 8, 9))
        with ak.patched(broken_model(-INF, step=1), modes) as model:
            out = model.generate(prompts(3, 6), mode="fast", **{**SAMPLED, "max_new_tokens": 3})
        assert (out[:, 6:] == torch.tensor([FAST, 8, 9])).all()

    def test_some_nan_with_something_left(self):
        model = ak.patch(broken_model(NAN, columns=slice(0, 90)), MODES)
        with pytest.warns(UserWarning, match="NaN logits in 1 of 3 rows"):
            out = model.generate(prompts(3, 6), **SAMPLED)
        assert (out[1, 8:] >= 90).all()


@pytest.mark.parametrize("step", [2, 5])
def test_one_step_late_on_a_gpu(step, monkeypatch):
    """The flags travel with the stop flags; those of the last step are asked for at the end."""
    monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
    model = broken_model(NAN, step)
    model.generation_config.pad_token_id = 0
    with ak.patched(model, MODES), pytest.raises(RuntimeError, match=TEXT):
        model.generate(prompts(3, 6), **SAMPLED)
