"""The stop check that reads one step late, as on a GPU: nobody sees it, and no step waits for the device."""

import traceback

import pytest
import torch
from parity import CACHE
from recorders import RecordingStreamer, RowLengths
from tiny_models import EOS, FAST, SLOW, build, left_padded, prompts, shared
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

import adapt_kernels as ak
from adapt_kernels import dispatch
from adapt_kernels.hf.loop import decode_loop
from adapt_kernels.hf.loop.stop_check import may_be_late

MODES = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=3), slow=SLOW)
WIDTH = 8


def call(lengths=None, new=10, **more):
    ends = {} if lengths is None else {"stopping_criteria": [RowLengths(WIDTH, lengths)]}
    inputs = left_padded(prompts(2, WIDTH), [8, 5])
    given = {"num_return_sequences": 3, "max_new_tokens": new, "eos_token_id": EOS, "suppress_tokens": [EOS], "seed": 5}
    return {**inputs, **given, **ends, "do_sample": True, "return_dict_in_generate": True, **more}


CASES = {
    "to the limit": {},
    "limit of one": {"new": 1},
    "rows leave": {"lengths": [2, 9, 4, 3, 9, 2]},
    "all end at once": {"lengths": [4] * 6},
    "at the first token": {"lengths": [1] * 6},
    "before the limit by one": {"lengths": [9] * 6},
    "balanced": {"mode": "balanced", "lengths": [7] * 6},
    "log-probs": {"fast_prob": 0.5, "return_logprobs": True, "lengths": [5, 6, 2, 3, 4, 6]},
    "shared": {"kv_layout": "shared", "lengths": [2, 9, 4, 3, 9, 2]},
    "never compacted": {"compact_at": 0.0, "lengths": [2, 9, 4, 3, 9, 2]},
}


@pytest.mark.parametrize(("architecture", "name"), [*(("llama", name) for name in CASES), ("lfm2", "rows leave")])
def test_nobody_sees_it(monkeypatch, architecture, name):
    with ak.patched(shared(architecture), MODES) as model:
        on_time = model.generate(**call(**CASES[name]))
        monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
        late = model.generate(**call(**CASES[name]))
    for field in ("sequences", "modes", "lengths"):
        assert torch.equal(getattr(late, field), getattr(on_time, field)), field
    # Rounding depends on the size of the batch.
    torch.testing.assert_close(late.mode_probs, on_time.mode_probs)
    if "return_logprobs" in CASES[name]:
        torch.testing.assert_close(late.logprobs, on_time.logprobs, atol=1e-5, rtol=1e-5)
    assert late.stats.row_steps_padded == on_time.stats.row_steps_padded
    assert late.stats.row_steps >= on_time.stats.row_steps
    for ours, theirs in zip(late[CACHE].layers, on_time[CACHE].layers, strict=True):
        if hasattr(theirs, "keys") and theirs.keys is not None:
            assert ours.keys.shape == theirs.keys.shape


BAN_ALL = {"rules": [{"bias": list(range(8, 24)), "by": "only"}, {"bias": list(range(8, 24)), "by": "ban"}]}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"do_sample": False, "num_return_sequences": 1}, {"output_scores": True}], ids=str
)
def test_rules_that_leave_no_token_are_named_however_late(monkeypatch, late, more):
    from_fourth = {"rules": [{**rule, "when": {"at": [3, None]}} for rule in BAN_ALL["rules"]]}
    if late:
        monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
        monkeypatch.setattr(dispatch, "host_waits", lambda device: True)
    with ak.patched(build("llama"), MODES) as model:
        with pytest.raises(ValueError, match=r"row 0: rules\[0\] \(bias\), rules\[1\] \(bias\) leave no token to draw"):
            model.generate(**call(program=ak.Program.from_dict(from_fourth), **more))
        model.generate(**call())  # and the model works on


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("drawn", [0, 8])
def test_one_row_s_rules_are_named_after_others_have_left(monkeypatch, late, drawn):
    """Even where a rule ends the row by the token that it was given for want of any."""
    rules = [{**rule, "when": {"at": [5, None]}} for rule in BAN_ALL["rules"]]
    program = ak.Program.from_dict({"rules": [*rules, {"force": [], "stop": True, "when": {"drawn": [drawn]}}]})
    if late:
        monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
        monkeypatch.setattr(dispatch, "host_waits", lambda device: True)
    given = call([2, 3, 2, 9, 9, 9], program=[None] * 4 + [program, None])
    with ak.patched(build("llama"), MODES) as model, pytest.raises(ValueError, match=r"row 4: rules\[0\] \(bias\)"):
        model.generate(**given)


def test_rows_leave_one_step_later(monkeypatch):
    with ak.patched(build("llama"), MODES) as model:
        model.generate(**call([3] * 3 + [10] * 3))
        on_time = ak.last_stats(model).row_steps
        monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
        model.generate(**call([3] * 3 + [10] * 3))
        # The three that leave compute one step more; the last three end at the limit, which the host knows.
        assert ak.last_stats(model).row_steps == on_time + 3


READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive")


class Reads(TorchDispatchMode):
    """Ops that would make the host wait for a GPU, while `on`."""

    def __init__(self):
        super().__init__()
        self.on, self.found = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on and func.overloadpacket.__name__ in READS:
            self.found.append("".join(traceback.format_stack(limit=12)))
        return func(*args, **(kwargs or {}))


PROGRAM = ak.Program.from_dict({"rules": [{"bias": [9, 11], "by": "ban"}, {"force": [12, 13], "when": {"at": 5}}]})
LAYOUTS = {
    "shared": {"kv_layout": "shared"},
    "shared, padded": {"kv_layout": "shared", "padded": True},
    "rows": {"kv_layout": "rows"},
    "sample_only": {"hook": True},
    "program": {"kv_layout": "shared", "program": PROGRAM},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"fast_prob": 0.5, "top_k": 5, "top_p": 0.9}], ids=str)
def test_a_step_reads_nothing_from_the_device(monkeypatch, sampling, layout):
    """Padded rows but under layout "shared" are left out: Hugging Face's masks look for padding at every step."""
    reads, put = Reads(), decode_loop.StopCheck.put

    def observed(self, ends, step):
        reads.on = 4 <= step < 9
        put(self, ends, step)

    monkeypatch.setattr(decode_loop.StopCheck, "put", observed)
    monkeypatch.setattr(decode_loop, "may_be_late", lambda *_: True)
    monkeypatch.setattr(dispatch, "host_waits", lambda device: True)
    more = dict(LAYOUTS[layout])
    model = ak.patch(build("llama"), ak.Modes(fast=FAST, slow=SLOW))
    if more.pop("hook", False):
        model.model.layers[0].register_forward_hook(lambda module, given, out: None)
    inputs = {} if more.pop("padded", False) else left_padded(prompts(2, WIDTH), [WIDTH, WIDTH])
    samples = {"num_return_sequences": 1 if sampling.get("do_sample") is False else 3}
    masks, forward = [], decode_loop._decode_forward

    def seen(model, config, kwargs):
        masks.append(kwargs.get("attention_mask"))
        return forward(model, config, kwargs)

    monkeypatch.setattr(decode_loop, "_decode_forward", seen)
    with reads:
        out = model.generate(**{**call(new=12), **inputs, **samples, **sampling, **more})
    if out.stats.kv_layout != "shared" and masks != [None]:
        pytest.skip("this release of transformers keeps a mask of ones, and looks at it in every step")
    assert out.stats.plan == ("sample_only" if layout == "sample_only" else "full")
    assert not reads.found, reads.found[0]
    # The observer sees such reads: a stop check that is not late, of tensors elsewhere, would be one.
    with reads:
        reads.on = True
        bool(torch.ones(3).any())
    assert reads.found


class TestWhen:
    CUDA = torch.device("cuda")

    def criteria(self, *more):
        return StoppingCriteriaList([MaxLengthCriteria(9), EosTokenCriteria(1), *more])

    def config(self, pad=0):
        return type("Config", (), {"_pad_token_tensor": pad})()

    def test_on_a_gpu(self):
        assert may_be_late(self.criteria(), self.config(), None, self.CUDA)

    @pytest.mark.parametrize(
        "change",
        [
            {"device": torch.device("cpu")},
            {"streamer": RecordingStreamer()},
            {"criteria": [RowLengths(8, [1])]},
            {"pad": None},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_not_where_it_could_be_seen(self, change):
        criteria, config = self.criteria(*change.get("criteria", ())), self.config(change.get("pad", 0))
        assert not may_be_late(criteria, config, change.get("streamer"), change.get("device", self.CUDA))
