"""A sampling loop of transformers that ours was not compared with: one self-check decides who decodes."""

import functools
import random
import socket
import warnings

import numpy as np
import pytest
import torch
from parity import GREEDY, MODES, WIDTH, padded_inputs
from tiny_models import FAST, build, shared
from transformers import GenerationMixin, LogitsProcessor
from transformers.generation.logits_process import LogitsProcessorList

import adapt_kernels as ak
from adapt_kernels.hf import compat
from adapt_kernels.hf.call import loop_check as probe

THEIRS = GenerationMixin._sample


@pytest.fixture
def unknown(monkeypatch):
    """As under a release that came later."""
    monkeypatch.setattr(compat, "_COMPARED_LOOPS", {"0" * 16: "5.0"})
    probe._difference.cache_clear()


class TestEqualLoop:
    def test_is_ours_with_a_warning(self, unknown):
        expected = shared("llama").generate(**padded_inputs(), **GREEDY)
        with (
            pytest.warns(UserWarning, match=r"not compared with \(known: 5.0\); in a self-check .* gave equal tokens"),
            ak.patched(shared("llama"), MODES) as model,
        ):
            assert torch.equal(model.generate(**padded_inputs(), **GREEDY), expected)
            assert ak.last_stats(model).plan == "full"
            assert (model.generate(**padded_inputs(), **GREEDY, mode="fast")[:, WIDTH] == FAST).all()

    @pytest.mark.parametrize("patch", [ak.patch, lambda model, modes: ak.patched(model, modes).__enter__()])
    def test_the_warning_points_at_the_caller(self, patch, unknown):
        with pytest.warns(UserWarning, match="self-check") as caught:
            patch(build("llama"), MODES)
        assert [warning.filename for warning in caught] == [__file__]

    def test_is_compared_once_per_process(self, unknown, monkeypatch):
        built = []
        monkeypatch.setattr(probe, "tiny_model", lambda made=probe.tiny_model: built.append(0) or made())
        for _ in range(3):
            with pytest.warns(UserWarning, match="self-check"):
                ak.patch(build("llama"), MODES)
        assert len(built) == 1

    def test_known_loops_are_not_checked(self, monkeypatch):
        monkeypatch.setattr(probe, "tiny_model", None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ak.patch(build("llama"), MODES)

    def test_leaves_no_trace(self, unknown, monkeypatch):
        def refuse(*args):
            raise AssertionError("the self-check must not use the network")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                assert probe.check_loop().difference is None
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), str(np.random.get_state())) == states[1:]

    def test_covers_rows_that_leave(self):
        model = probe.tiny_model()
        call = probe.self_check_calls(model)["greedy"]
        with ak.patched(model, MODES):
            out = model.generate(**call)
        assert len(set(out.lengths.tolist())) >= 3
        assert out.stats.plan == "full" and out.stats.row_steps < 0.7 * out.stats.row_steps_padded


class Flip(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return -scores


def other_tokens(self, input_ids, logits_processor, *args, **kwargs):
    return THEIRS(self, input_ids, LogitsProcessorList([Flip(), *logits_processor]), *args, **kwargs)


def other_samples(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    if generation_config.do_sample:
        logits_processor = LogitsProcessorList([Flip(), *logits_processor])
    return THEIRS(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)


def other_padding(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    generation_config._pad_token_tensor = generation_config._pad_token_tensor + 2
    return THEIRS(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)


def one_token_more(self, *args, **kwargs):
    out = THEIRS(self, *args, **kwargs)
    sequences = out if torch.is_tensor(out) else out.sequences
    longer = torch.cat([sequences, sequences[:, -1:]], 1)
    if torch.is_tensor(out):
        return longer
    out.sequences = longer
    return out


def silent_end(self, *args, streamer=None, **kwargs):
    if streamer is not None:
        streamer.end = lambda: None
    return THEIRS(self, *args, streamer=streamer, **kwargs)


@functools.wraps(THEIRS)
def in_disguise(self, *args, **kwargs):
    return other_tokens(self, *args, **kwargs)


CHANGED = {
    other_tokens: "greedy decoding differs",
    other_samples: "sampled decoding differs",
    other_padding: "greedy decoding differs",
    one_token_more: "greedy decoding differs",
    silent_end: "greedy decoding differs",
    in_disguise: "greedy decoding differs",
}


class TestChangedLoop:
    @pytest.mark.parametrize("loop", CHANGED, ids=lambda loop: loop.__code__.co_name)
    def test_decodes_itself(self, loop, monkeypatch):
        monkeypatch.setattr(GenerationMixin, "_sample", loop)
        model, ends = shared("llama"), {**GREEDY, "eos_token_id": list(range(10, 20))}
        expected = model.generate(**padded_inputs(), **ends)
        with pytest.warns(UserWarning, match=f"{CHANGED[loop]}. Every call is left to transformers"):
            ak.patch(model, MODES)
        try:
            assert torch.equal(model.generate(**padded_inputs(), **ends), expected)
            stats = ak.last_stats(model)
            assert stats.plan == "original" and CHANGED[loop] in stats.reason and "5.17 to 5.23" in stats.reason
            ours = {"mode": "fast", "fast_prob": 0.5, "mode_bias": 0.0, "seed": 1, "return_logprobs": True}
            for name, value in ours.items():
                with pytest.raises(ValueError, match=f"{name} cannot be honoured.*{CHANGED[loop]}"):
                    model.generate(**padded_inputs(), **ends, **{name: value})
        finally:
            ak.unpatch(model)

    @pytest.mark.parametrize("error", [NotImplementedError("moved elsewhere"), TypeError("takes 3 arguments")])
    def test_crashes(self, error, monkeypatch):
        def crashes(*args, **kwargs):
            raise error

        monkeypatch.setattr(GenerationMixin, "_sample", crashes)
        expected = f"{type(error).__name__}: {error}"
        with (
            pytest.warns(UserWarning, match=f"self-check on a tiny model failed: {expected}"),
            ak.patched(build("llama"), MODES) as model,
            pytest.raises(ValueError, match=f"mode cannot be honoured.*{expected}"),
        ):
            model.generate(**padded_inputs(), **GREEDY, mode="fast")

    def test_ours_crashes(self, unknown, monkeypatch):
        """A release whose loop is the same, but not what it calls."""

        def fails(*args, **kwargs):
            raise KeyError("cache")

        monkeypatch.setattr("adapt_kernels.hf.call.generate.decode", fails)
        with pytest.warns(UserWarning, match="failed: KeyError"), ak.patched(build("llama"), MODES) as model:
            model.generate(**padded_inputs(), **GREEDY)
            assert ak.last_stats(model).plan == "original"

    def test_keeps_every_row(self, unknown, monkeypatch):
        """Then nothing was shown of rows that leave."""
        monkeypatch.setattr("adapt_kernels.hf.call.plan.whole_batch_reason", lambda *args: "of a test")
        with pytest.warns(UserWarning, match="failed: it kept every row: of a test"):
            ak.patch(build("llama"), MODES)

    def test_replaced_after_patch(self, monkeypatch):
        with ak.patched(build("llama"), MODES) as model:
            monkeypatch.setattr(GenerationMixin, "_sample", other_tokens)
            theirs = model.generate(**padded_inputs(), **GREEDY)
            stats = ak.last_stats(model)
            assert stats.plan == "original" and "_sample was replaced after patch" in stats.reason
            with pytest.raises(ValueError, match="replaced after patch: unpatch and patch again"):
                model.generate(**padded_inputs(), **GREEDY, mode="fast")
        assert torch.equal(model.generate(**padded_inputs(), **GREEDY), theirs)
