"""`cuda_graph`: forwards replayed on a CPU, by a stand-in that fails where a real graph would go wrong."""

import weakref

import pytest
import torch
from fake_graphs import MODES, WIDTH, call
from parity import CACHE
from recorders import CallbackStreamer
from tiny_models import FAST, SLOW, build, prompts
from transformers.cache_utils import DynamicLayer

import adapt_kernels as ak
from adapt_kernels.hf.kv.fixed_rows import FixedRows
from adapt_kernels.hf.kv.segments import KVLedger, SegmentedLayer
from adapt_kernels.hf.loop import decode_loop
from adapt_kernels.hf.loop.step_record import StepRecord, difference

GROWS = ak.Modes(fast=ak.Mode(FAST, kv_tokens=6), slow=SLOW)  # to 12, then to what the call may need
PROGRAM = ak.Program.from_dict({"rules": [{"bias": [9, 11], "by": "ban"}, {"force": [12, 13], "when": {"at": 5}}]})
# Their side decodes write behind the rows, and may make segments grow.
PROBES = ak.Program.from_dict(
    {
        "rules": [
            *(
                {"probe": [5, 9], "max": 3, "measure": "mean_prob", "into": "sure", "when": {"at": at}}
                for at in (4, 9, 15)
            ),
            {"force": [12, 13], "when": {"at": 10, "if": {"sure": [0.2, None]}}},
        ]
    }
)
LEAVE = [2, 20, 12, 9, 24, 6]
CASES = {
    "sampled": {},
    "greedy": {"do_sample": False, "num_return_sequences": 1},
    "one row": {"num_return_sequences": 1, "input_ids": prompts(1, WIDTH), "attention_mask": None},
    "filters": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "padded": {"widths": (8, 5)},
    "modes": {"fast_prob": 0.5, "return_logprobs": True},
    "rows leave": {"lengths": LEAVE},
    "rows leave at once": {"lengths": LEAVE, "compact_at": 1.0, "widths": (8, 5)},
    "never compacted": {"lengths": LEAVE, "compact_at": 0.0},
    "all end at once": {"lengths": [9] * 6},
    "program": {"program": PROGRAM, "lengths": LEAVE},
    "probes": {"program": PROBES, "widths": (8, 5)},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "lengths": LEAVE},
    "paths": {"paths": ak.Paths(keep=0.5, at=(6, 12), score="logprob")},
    "one step more": {"new": 5},
}


@pytest.mark.parametrize(
    ("architecture", "name", "modes"),
    [*(("llama", name, GROWS) for name in CASES)]
    + [("llama", name, MODES) for name in ("sampled", "rows leave")]
    + [(other, "rows leave at once", GROWS) for other in ("qwen3", "gpt2", "opt", "deepseek_v3")],
)
def test_the_tokens_of_the_call_without(graphs, architecture, name, modes):
    given = call(**CASES[name])
    with ak.patched(build(architecture), modes) as model:
        wanted = model.generate(**given)
    with ak.patched(build(architecture), modes) as model:  # anew: calls remember lengths
        found = model.generate(**given, cuda_graph="auto")
    assert found.stats.graph_reason == "" and found.stats.graph_replays == len(graphs.replays) > 0
    assert found.stats.graph_captures == len(graphs.captured)
    for field in ("sequences", "modes", "lengths"):
        assert torch.equal(getattr(found, field), getattr(wanted, field)), field
    if wanted.logprobs is not None:
        torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=1e-5, rtol=1e-5)
    for field in ("plan", "row_steps", "kv_layout", "kv_bytes_peak"):
        assert getattr(found.stats, field) == getattr(wanted.stats, field), field


def test_the_cache_of_the_call_without(graphs):
    with ak.patched(build("llama"), MODES) as model:
        wanted, found = (model.generate(**call(), cuda_graph=graph)[CACHE] for graph in (False, True))
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-5, rtol=1e-5)


def test_nobody_sees_a_late_stop_check(graphs, monkeypatch):
    monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
    with ak.patched(build("llama"), MODES) as model:
        wanted, found = (model.generate(**call(LEAVE), cuda_graph=graph) for graph in (False, "auto"))
    assert graphs.replays and torch.equal(found.sequences, wanted.sequences)


def recorded_forwards(monkeypatch, **settings):
    """A record of every forward of a call's steps without a graph."""
    records, of_call = [], decode_loop._decode_forward

    def observed(*args):
        forward = of_call(*args)

        def run(**inputs):
            records.append(StepRecord())
            with records[-1]:
                return forward(**inputs)

        return run

    with monkeypatch.context() as patch, ak.patched(build("llama"), MODES) as model:
        patch.setattr(decode_loop, "_decode_forward", observed)
        model.generate(**call(**settings))
    return records


def test_consecutive_steps_issue_the_same_ops_on_the_same_addresses(graphs, monkeypatch):
    with ak.patched(build("llama"), MODES) as model:
        model.generate(**call(), cuda_graph="auto")
    assert graphs.captured == [6] and len(graphs.replays) >= 20
    first = graphs.replays[0][1]
    assert len(first.ops) > 50 and all(difference(first, record) is None for _, record in graphs.replays)
    # As they are without a graph, steps differ: KV is read at its length.
    plain = recorded_forwards(monkeypatch)
    assert len(plain) == 23 and all(difference(*pair) for pair in zip(plain[2:], plain[3:], strict=False))


def test_a_graph_serves_its_bucket_of_slots(graphs):
    """Six rows, of which one leaves after so many tokens: a graph of 6 serves 5, one of 4 serves 3, then 2."""
    with ak.patched(build("llama"), MODES) as model:
        out = model.generate(**call([6, 10, 14, 18, 24, 24], compact_at=1.0), cuda_graph="auto")
    assert graphs.captured == [6, 4, 2]
    assert [slots for slots, _ in graphs.replays] == [6] * 7 + [4] * 6 + [2] * 4
    assert out.stats.row_steps == 6 * 5 + 5 * 4 + 4 * 4 + 3 * 4 + 2 * 6


def test_a_graph_is_captured_anew_where_segments_grow(graphs):
    with ak.patched(build("llama"), GROWS) as model:
        model.generate(**call(), cuda_graph="auto")
    # At 6, 12 and 23 new positions: an eager step, one that is captured, and replays.
    assert len(graphs.captured) == 3
    assert len(graphs.replays) == (6 - 2) + (6 - 2) + (11 - 2)


def test_growing_segments_give_the_old_ones_back_at_once():
    class Allotment:
        def capacity(self, length):
            return 2 * length

    plain = DynamicLayer()
    plain.update(torch.ones(3, 2, 5, 4), torch.ones(3, 2, 5, 4))
    layer = SegmentedLayer(plain, KVLedger(), Allotment())
    del plain
    rows = FixedRows([layer], 3)
    with rows.shown():
        assert layer.get_seq_length() == 4 and layer.get_mask_sizes(1) == (5, 0)
    old = [weakref.ref(tensor) for tensor in layer._buffers]
    layer.update(torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4))
    assert not any(tensor() is not None for tensor in old)
    assert layer.get_seq_length() == 6 and layer.capacity == 12 > rows.capacity
    rows = FixedRows([layer], 3)
    for fill, unwritten in ((rows.poison, 10), (rows.clear, 0)):
        fill()
        for tensor in layer._buffers:
            assert (tensor[:, :, :6] == 1).all() and (tensor[:, :, 6:] == unwritten).all()


class TestFailures:
    def same_as_without(self, given, **more):
        """What "auto" gives is what False gives, to the last bit; returns why."""
        with ak.patched(build("llama"), GROWS) as model:
            wanted, found = (
                model.generate(**call(return_logprobs=True, **given), cuda_graph=x) for x in (False, "auto")
            )
        assert torch.equal(found.sequences, wanted.sequences) and torch.equal(found.logprobs, wanted.logprobs)
        for ours, theirs in zip(found[CACHE].layers, wanted[CACHE].layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
        return found.stats.graph_reason

    def test_a_failed_capture_changes_nothing(self, graphs):
        graphs.fails = 0
        reason = self.same_as_without({})
        assert reason == ("the model's forward cannot be captured: operation not permitted when stream is capturing")
        assert graphs.captured == graphs.replays == []

    def test_a_later_capture_may_fail(self, graphs):
        graphs.fails = 1
        with ak.patched(build("llama"), GROWS) as model:
            wanted, found = (model.generate(**call(), cuda_graph=graph) for graph in (False, "auto"))
        assert torch.equal(found.sequences, wanted.sequences)
        assert found.stats.graph_captures == 1 and found.stats.graph_replays == 4
        assert "operation not permitted" in found.stats.graph_reason

    def test_a_graph_that_was_required(self, graphs):
        graphs.fails = 1
        with ak.patched(build("llama"), GROWS) as model:
            text = (
                "cuda_graph=True: the model's forward cannot be captured: operation not permitted .*; leave cuda_graph"
            )
            with pytest.raises(RuntimeError, match=text):
                model.generate(**call(), cuda_graph=True)
            graphs.fails = None
            assert model.generate(**call(), cuda_graph=True).stats.graph_replays

    def test_an_error_within_a_step_releases_the_graph(self, graphs):
        def fail():
            if len(graphs.replays) == 3:
                raise RuntimeError("a streamer failed")

        with ak.patched(build("llama"), MODES) as model:
            with pytest.raises(RuntimeError, match="a streamer failed"):
                model.generate(**call(), streamer=CallbackStreamer(fail), cuda_graph="auto")
            assert graphs.captured and not graphs.alive
            assert model.generate(**call(), cuda_graph="auto").stats.graph_replays
