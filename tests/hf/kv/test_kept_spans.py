"""Under `kv_keep` the thinking of a row goes, its answer and its tags stay."""

import pytest
import torch
from tiny_models import FAST, SLOW, build, prompts
from transformers import LogitsProcessorList

import adapt_kernels as ak
from adapt_kernels.hf.kv import kept_batch

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, OPEN, CLOSE = 8, 40, 41
SPANS = {"think": ak.Span(open=OPEN, close=CLOSE)}


class _Processor:
    def __init__(self, function):
        self._function = function

    def __call__(self, ids, scores):
        return self._function(ids, scores)


def script(tokens):
    """Force the new tokens of every row, [rows, new]."""

    def forced(ids, scores):
        step = ids.shape[1] - WIDTH
        row = torch.arange(len(ids)) % len(tokens)
        out = torch.full_like(scores, -1e9)
        return out.scatter(1, tokens[row, step][:, None], 0.0)

    return forced


def generate(tokens, settings, spans, ids=None):
    kept, original = [], kept_batch.Keeper.evict

    def spy(keeper, stores, *arguments):
        original(keeper, stores, *arguments)
        kept.append(keeper._held[0].clone())

    processor = script(tokens)
    ids = prompts(len(tokens), WIDTH) if ids is None else ids
    model = ak.patch(build("llama"), MODES, spans=spans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_batch.Keeper, "evict", spy)
        # It knows rows by their place, and none leaves.
        patch.setattr("adapt_kernels.hf.call.plan._processor_reason", lambda given: None)
        model.generate(
            ids,
            max_new_tokens=tokens.shape[1],
            do_sample=False,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([_Processor(processor)]),
            kv_keep=settings,
        )
    return kept


def test_thinking_goes_and_the_rest_stays():
    tokens = torch.full((2, 16), 50)
    tokens[:, 2], tokens[0, 9] = OPEN, CLOSE
    kept = generate(tokens, ak.KeepKV(10, 8, 2, "recent"), SPANS)
    # At 11 of 0..10: what was before the thought and after it stays, with the tags, and the newest of the rest.
    assert kept[0][0].tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert kept[0][1].tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert kept[1][0].tolist() == [0, 1, 2, 9, 10, 11, 12, 13]
    assert kept[1][1].tolist() == [0, 1, 2, 9, 10, 11, 12, 13]


def test_no_span_known_means_every_new_position():
    tokens = torch.full((2, 16), 50)
    kept = generate(tokens, ak.KeepKV(10, 8, 2, "recent", sinks=1), {})
    assert kept[0][0].tolist() == [0, 4, 5, 6, 7, 8, 9, 10]


def test_a_thought_that_the_prompt_opened():
    ids = prompts(1, WIDTH)
    ids[:, -1] = OPEN
    kept = generate(torch.full((1, 14), 50), ak.KeepKV(10, 8, 2, "recent"), SPANS, ids)
    assert kept[0][0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


def test_answers_beyond_the_budget_are_an_error():
    tokens = torch.full((2, 16), 50)
    tokens[1, 0] = OPEN
    text = r"row 0 protects 11 positions, and only 8 may be held .*budget=10, keep=8, window=2"
    with pytest.raises(ValueError, match=text):
        generate(tokens, ak.KeepKV(10, 8, 2, "recent"), SPANS)
