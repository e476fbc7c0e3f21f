"""What `ModeProcessor` costs, shares and refuses, beside what it says."""

from types import SimpleNamespace

import pytest
import torch
from fake_engines import VOCAB, NewerEngine, OlderEngine, Request
from stand_ins import MoveDirectionality
from test_runners import PROGRAMS, served
from torch.utils._python_dispatch import TorchDispatchMode

from adapt_kernels.philox import row_seed
from adapt_kernels.serving import writing
from adapt_kernels.serving.control import HostTokens, RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.settings import ROW_KEY, parse


def batch_of(processor, config, rows, generated):
    """A processor of the older runner with these settings in its batch."""
    made = processor.ModeProcessor(config, torch.device("cpu"), False)
    added = [
        (n, SimpleNamespace(extra_args=own, temperature=1.0, max_tokens=9), [1], said)
        for n, (own, said) in enumerate(zip(rows, generated, strict=True))
    ]
    made.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    return made


def test_rows_without_settings_are_not_touched_and_nothing_is_made_for_them(processor, engine_config):
    made = batch_of(processor, engine_config(served()), [None, {"of": 1}], [[], []])
    logits = torch.randn(2, VOCAB)
    assert made.apply(logits) is logits and made._control is None
    assert not made.is_argmax_invariant()


def test_a_row_that_has_its_mode_costs_nothing_more(processor, engine_config, monkeypatch):
    said = [[], []]
    made = batch_of(processor, engine_config(served()), [{"mode": "fast", ROW_KEY: 1}, None], said)
    before = torch.randn(2, VOCAB)
    after = made.apply(before.clone())
    assert after[0].argmax() == 5 and (after[0] > -torch.inf).sum() == 1 and torch.equal(after[1], before[1])
    said[0].append(5)
    monkeypatch.setattr(processor.RowControl, "caught_up", None)
    logits = torch.randn(2, VOCAB)
    assert torch.equal(made.apply(logits.clone()), logits)


@pytest.mark.parametrize("newer", [False, True])
def test_a_second_instance_in_one_engine_is_inert(processor, engine_config, newer):
    config = engine_config(served())
    one = Request(0, [1, 2], {"fast_prob": 0.5, ROW_KEY: 3}, 4)
    engine = (
        NewerEngine(processor.ModeProcessor, config, [one], 0)
        if newer
        else OlderEngine(processor.ModeProcessor, config, [one], 0, directions=MoveDirectionality)
    )
    second = processor.ModeProcessor(config, *([engine.state] if newer else [torch.device("cpu"), False]))
    assert second.inert and not engine.processor.inert
    if newer:
        assert not second.add_request(0, one.params)
    else:
        second.update_state(SimpleNamespace(removed=[], added=[(0, one.params, [1, 2], [])], moved=[]))
    logits = torch.randn(1, VOCAB)
    assert second.apply(logits.clone(), None).equal(logits)
    del engine, second
    # The next engine of the process acts, whatever memory it got.
    other = engine_config(served())
    assert not processor.ModeProcessor(other, torch.device("cpu"), False).inert


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_the_probability_is_exact_at_every_temperature(processor, engine_config, prob, temperature):
    count = 4000
    control = RowControl(served(), VOCAB, torch.device("cpu"))
    settings = parse({"fast_prob": prob}, control.served)
    for n in range(count):
        control.add(n, Row(settings, [1], [], row_seed(11, n), temperature, 9))
    logits = control.step(torch.randn(count, VOCAB), HostTokens(control, [(n, n) for n in range(count)]))
    share = (logits.argmax(1) == 5).double().mean()
    assert set(logits.argmax(1).tolist()) == {5, 6}
    assert abs(share - prob) < 3 * (prob * (1 - prob) / count) ** 0.5


def test_what_later_stages_do_cannot_undo_a_choice(processor, engine_config):
    rows = [{"mode": "slow", ROW_KEY: 1}, {"fast_prob": 0.999999, ROW_KEY: 2}]
    made = batch_of(processor, engine_config(served()), rows, [[], []])
    logits = torch.zeros(2, VOCAB)
    logits[:, 20] = 1e9
    logits = made.apply(logits)
    for edit in (lambda x: x / 0.01, lambda x: x - 50.0, lambda x: x * 3):
        assert torch.softmax(edit(logits), 1).argmax(1).tolist() == [6, 5]


def test_one_request_draws_the_same_on_every_rank_and_in_any_slot(processor, engine_config):
    logits = torch.randn(1, VOCAB).expand(64, VOCAB)
    drawn = []
    for order in (range(64), reversed(range(64))):
        rows = [{"fast_prob": 0.5, ROW_KEY: row_seed(5, n)} for n in order]
        made = batch_of(processor, engine_config(served()), rows, [[] for _ in rows])
        drawn.append(made.apply(logits.clone()).argmax(1).tolist())
    assert drawn[0] == drawn[1][::-1] and len(set(drawn[0])) == 2


def test_a_request_past_the_guard_has_a_stream_of_its_replica(processor, engine_config):
    def modes(rank, name):
        config = engine_config(served())
        config.parallel_config.data_parallel_rank, config.instance_id = rank, name
        made = batch_of(processor, config, [{"fast_prob": 0.5}] * 64, [[] for _ in range(64)])
        return made.apply(torch.zeros(64, VOCAB)).argmax(1).tolist()

    assert modes(0, "a") == modes(0, "a")
    assert len({tuple(modes(rank, name)) for rank in (0, 1) for name in "ab"}) == 4


class _Reads(TorchDispatchMode):
    """Notes operations that make the host wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "index.Tensor_bool")

    def __init__(self):
        super().__init__()
        self.found, self.issued = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.issued += 1
        by_bool = "index" in func.__name__ and any(
            torch.is_tensor(each) and each.dtype == torch.bool
            for arg in args
            if isinstance(arg, (list, tuple))
            for each in arg
        )
        if by_bool or any(name in func.__name__ for name in self.WAITS):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_step_never_waits_for_the_device(processor, engine_config, monkeypatch, drafts):
    """What a GPU would run: the host is told to look at nothing. `mode_sample` states the same of itself."""
    from adapt_kernels.serving import control
    from adapt_kernels.serving import drafts as drafted

    model = served()
    config = engine_config(model, drafts)
    asked = [
        Request(n, [1, 6], {"program": name, ROW_KEY: n}, 12) for n, name in enumerate(PROGRAMS) if name != "by mode"
    ]
    asked += [Request(9, [1], {"fast_prob": 0.5, "thinking_budget": 2, ROW_KEY: 9}, 12)]
    for each in asked:
        each.expected = [6] * 12
    engine = NewerEngine(processor.ModeProcessor, config, asked, 1, places=8, drafts=drafts)

    def drawn(logits, **kwargs):
        return SimpleNamespace(tokens=torch.full((len(logits),), 6))

    monkeypatch.setattr(writing, "mode_sample", drawn)
    for module in (control, drafted):
        monkeypatch.setattr(module, "write", lambda *a: writing.write(*a, reads=False))
    own, seen = processor.ModeProcessor.apply, []

    def watched(self, logits, context):
        self._control._backend = "reference"
        for lane in self._control._lanes.values():
            lane.backend = "reference"
        with _Reads() as reads:
            result = own(self, logits, context)
        seen.append(reads)
        return result

    monkeypatch.setattr(processor.ModeProcessor, "apply", watched)
    for _ in range(4):
        engine.step()
    assert sum(reads.issued for reads in seen) > 500
    assert not [name for reads in seen for name in reads.found]


def test_not_watched_off_a_gpu_the_step_does_look(processor, engine_config):
    """The watch above sees what it is there to see."""
    with _Reads() as reads:
        assert torch.ones(2).bool().nonzero().numel() and int(torch.ones(())) == 1
        assert torch.zeros(2)[torch.ones(2).bool()].numel()
    assert len(reads.found) >= 3
