"""Probe rules in `generate`: their values are those of an independent decode, and they leave no trace."""

import math

import pytest
import torch
from scripted_model import PAD, PLANS, run
from tiny_models import EOS, FAST, SLOW, build, left_padded, prompts, shared

import adapt_kernels as ak
from adapt_kernels.program.run import ProgramRun

WIDTH, NEW, TEXT = 7, 8, [5, 9, 11]
MODES = ak.Modes(fast=FAST, slow=SLOW)
MEASURES = ("mean_prob", "geometric_prob", "certainty")
WAYS = [("full", {}), ("full", {"kv_layout": "shared"}), ("sample_only", {"output_logits": True})]


def probe(at, measure="mean_prob", most=4, text=TEXT, into=None, **more):
    when = at if isinstance(at, dict) else {"at": at}
    return {"probe": text, "max": most, "measure": measure, "into": into or f"{measure}{at}", "when": when, **more}


def program(*rules, spans=None):
    return ak.Program.from_dict({"rules": list(rules), **({} if spans is None else {"spans": spans})})


@pytest.fixture
def filled(monkeypatch):
    """[(register, values [slots], rows)] as probes write them."""
    seen, fill = [], ProgramRun.fill

    def spy(self, values, where=None):
        for name, value in values.items():
            seen.append((name, value.tolist(), self.slots.host.tolist()))
        fill(self, values, where)

    monkeypatch.setattr(ProgramRun, "fill", spy)
    return seen


@torch.no_grad()
def asked(model, ids, measure, most=4, skip=0):
    """The measure after the unpadded ids and TEXT, by whole forwards."""
    ids, values = torch.cat([ids, torch.tensor(TEXT)]), []
    for _ in range(most):
        probs = model(ids[None]).logits[0, -1].double().softmax(-1)
        token = probs.argmax()
        entropy = torch.special.entr(probs).sum()
        values.append(probs[token] if measure != "certainty" else 1 - entropy / math.log(len(probs)))
        ids = torch.cat([ids, token[None]])
    values = torch.stack(values[skip:])
    return float(values.log().mean().exp() if measure == "geometric_prob" else values.mean())


CASES = [
    pytest.param(architecture, *way, marks=() if architecture == "llama" or way == WAYS[0] else pytest.mark.full)
    for architecture in ("llama", "gpt2", "gemma3_text", "lfm2")
    for way in WAYS
]


@pytest.mark.parametrize(("architecture", "plan", "way"), CASES)
def test_values_are_those_of_an_independent_decode(filled, architecture, plan, way):
    model, lengths = shared(architecture), [7, 3, 5]
    inputs = left_padded(prompts(3, WIDTH), lengths)
    rules = program(*(probe(at, measure, skip=at // 3) for at in (0, 1, 4) for measure in MEASURES))
    plain_settings = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "num_return_sequences": 2}
    plain_settings |= {"seed": 3, "return_dict_in_generate": True, "pad_token_id": PAD, **way}
    with ak.patched(model, MODES):
        plain = model.generate(**inputs, **plain_settings)
        out = model.generate(**inputs, program=rules, **plain_settings)
    assert torch.equal(out.sequences, plain.sequences) and out.stats.plan == plan
    assert out.stats.probe_tokens > 0 and plain.stats.probe_tokens is None
    assert out.stats.row_steps == plain.stats.row_steps
    assert len(filled) == 9 and out.fired.tolist() == [[1] * 9] * 6
    for name, values, rows in filled:
        measure, at = name[:-1], int(name[-1])
        for value, row in zip(values, rows, strict=True):
            start = WIDTH - lengths[row // 2]
            ids = out.sequences[row, start : WIDTH + at]
            assert value == pytest.approx(asked(model, ids, measure, skip=at // 3), abs=2e-5), (name, row)


def test_only_rows_that_ask_are_filled(filled):
    rules = program(probe({"after": 8}, into="sure"))
    rows, out = run("8 9 8 9 6", rows=2, program=[rules, None])
    assert [name for name, *_ in filled] == ["sure", "sure"] and out.fired.tolist() == [[2], [-1]]
    assert rows == [[8, 9, 8, 9, 6]] * 2


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_measures_skips_and_ends(filled, plan, more):
    """The scripted model says by position what it says: after 8 and the text 3 come 9 (.73), 4 (.73), 2, 6."""
    sure, half = 1.0, 1 / (1 + math.exp(-1))
    wishes = "8 . 9>10 4>5 2 6 . . ."
    asking = {"after": 8}
    rules = program(
        probe(asking, "mean_prob", 4, [3], "all"),
        probe(asking, "mean_prob", 9, [3], "to the end of the reply"),
        probe(asking, "mean_prob", 9, [3], "until", until=4),
        probe(asking, "geometric_prob", 9, [3], "skipped", until=2, skip=1),
        probe(asking, "mean_prob", 2, [3], "never", until=2, complete=True),
        probe(asking, "mean_prob", 9, [3], "one token", until=9, skip=1),
    )
    _, out = run(wishes, program=rules, **more)
    expected = {
        "all": (half + half + sure + sure) / 4,
        "to the end of the reply": (half + half + sure + sure) / 4,
        "until": half,
        "skipped": math.sqrt(half * sure),
        "never": 0.0,
        "one token": 0.0,
    }
    assert {name: values[0] for name, values, _ in filled} == pytest.approx(expected, abs=1e-6)
    assert out.stats.probe_tokens == 4 + 4 + 2 + 3 + 2 + 1 and out.stats.plan == plan


def test_a_sure_answer_closes_the_thought():
    """DEER: at a drawn 5 the answer is asked for; where it is sure, the thought is closed instead."""
    spans = {"think": {"open": 1, "close": 2}}
    drawn = {"in": "think", "drawn": 5}
    rules = program(
        probe(drawn, "mean_prob", 1, [3], "sure"),
        {"force": [2], "when": {**drawn, "if": {"sure": [0.9, None]}}},
        spans=spans,
    )
    # After the text 3, at the position after it: unsure at first, sure at the second 5.
    for plan, more in PLANS:
        rows, out = run("8 5 9>8 8 5 10 11 6", program=rules, **more)
        assert rows == [[8, 5, 9, 8, 2, 10, 11, 6]] and out.stats.plan == plan
        assert out.spans == [[("think", 0, 4, "rule")]] and out.fired.tolist() == [[2, 1]]


def test_rows_that_left_are_not_asked(filled):
    model = ak.patch(build("llama"), MODES)
    ids, settings = prompts(4, WIDTH), {"do_sample": True, "top_k": 0, "seed": 5, "pad_token_id": PAD}
    settings |= {"max_new_tokens": 20, "eos_token_id": list(range(10, 18)), "compact_at": 1.0}
    rules = program(probe({"at": [12, None], "times": 1}, into="late"))
    out = model.generate(ids, program=rules, return_dict_in_generate=True, **settings)
    lived = (out.lengths > 12).nonzero()[:, 0].tolist()
    assert 0 < len(lived) < 4 and out.stats.row_steps < out.stats.row_steps_padded
    assert [sorted(rows) for *_, rows in filled] == [lived]
    assert out.fired[:, 0].tolist() == [int(row in lived) for row in range(4)]


def test_refused_where_positions_cannot_be_taken_back():
    rules = program(probe(2))
    model = ak.patch(build("llama"), MODES)
    for more, reason in (
        ({"cache_implementation": "static"}, "StaticCache"),
        ({"use_cache": False}, "no cache"),
    ):
        with pytest.raises(ValueError, match=f"its probe rules cannot run in this call: .*{reason}"):
            model.generate(prompts(2, WIDTH), program=rules, max_new_tokens=4, eos_token_id=EOS, **more)
