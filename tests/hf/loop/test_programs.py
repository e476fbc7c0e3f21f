"""generate(program=): golden traces through a real generate, programs per row, every kind of rule, refusals."""

import sys
from pathlib import Path

import pytest
import torch
from scripted_model import PAD, PLANS, VOCAB, run
from tiny_models import FAST, SLOW, build, prompts, shared
from transformers import LogitsProcessor

import adapt_kernels as ak
from adapt_kernels.hf.loop.probes import Probes
from adapt_kernels.program import run as program_run
from adapt_kernels.program.run import ProgramRun

sys.path.append(str(Path(__file__).parents[2] / "program"))
from test_golden_traces import TRACES

THINK = {"think": {"open": 1, "close": 2, "breaks": 7}}
CAP = {"force": [3, 2], "when": {"in": "think", "count": [2, None]}}


def program(*rules, spans=THINK):
    return ak.Program.from_dict({"spans": spans, "rules": list(rules)})


def inject(monkeypatch, uniforms, registers):
    """Firing draws and registers of a trace, by step."""
    decide, step = ProgramRun.decide, iter(range(1 << 10))

    def injected(self, _=None):
        at = next(step)
        given = (registers or {}).get(at, {})
        self.fill({name: torch.full((len(self.slots),), value) for name, value in given.items()})
        u = (uniforms or {}).get(at, 0.5)
        return decide(self, torch.full((len(self.slots), len(self.compiled.rules)), u, dtype=torch.float64))

    monkeypatch.setattr(ProgramRun, "decide", injected)


@pytest.mark.parametrize("number", TRACES)
@pytest.mark.parametrize(("plan", "more"), PLANS[::2], ids=["full", "sample_only"])
def test_golden_trace(monkeypatch, number, plan, more):
    rules, wishes, expected, given = TRACES[number]
    if "uniforms" in given:
        inject(monkeypatch, given["uniforms"], given.get("registers"))
    if "probed" in given:
        width, probed = len(given.get("prompt", (1,))), given["probed"]
        values = lambda self, *_: torch.full((len(self.input_ids),), probed[self.input_ids.shape[1] - width])  # noqa: E731
        monkeypatch.setattr(Probes, "_values", values)
    inputs = {"program_inputs": {name: [0.0] * 2 for name in rules.inputs}} if rules.inputs else {}
    settings = {"max_new_tokens": given["max_new"]} if "max_new" in given else {}
    # Two rows: equal prompts are computed once, and branch at the first step.
    rows, out = run(wishes, given.get("prompt", (1,)), 2, program=rules, **inputs, **settings, **more)
    assert rows == [[int(each.strip("[]*~")) for each in expected.split()]] * 2
    written = [each[0] == "[" or each[-1] == "*" for each in expected.split()]
    assert [row[: len(written)] for row in out.forced.tolist()] == [written] * 2
    assert out.stats.plan == plan and out.fired.dtype == torch.int32


def test_prompts_stored_once():
    for number in ("1", "6", "13", "25"):
        rules, wishes, expected, _ = TRACES[number]
        rows, out = run(wishes, program=rules, rows=3, kv_layout="shared")
        assert rows == [[int(each.strip("[]*~")) for each in expected.split()]] * 3 and out.stats.plan == "full"


def test_a_step_asks_the_op_once(monkeypatch):
    """Where no rule looks at what was drawn, and rows stay where they are."""
    asked = []

    def counted(name):
        op = getattr(program_run, name)
        return lambda *given, **options: (asked.append(name), op(*given, **options))[1]

    for name in ("advance", "probe", "decide", "step", "settle"):
        monkeypatch.setattr(program_run, name, counted(name))
    rules = program(CAP, {"bias": 9, "by": "ban", "when": {"in": "think"}})
    rows, _ = run("8 8 . . 10 10 6", program=rules, rows=2)
    assert rows == [[8, 8, 3, 2, 10, 10, 6]] * 2
    # The prompt's token; rows branch after the first step; the last token is for what the output reports.
    assert asked == ["advance", "decide", "advance", "decide", *["step"] * 5, "advance"]


def test_mirostat_keeps_less_after_a_surprise():
    """Trace 28: of p = 1/2 1/4 1/8 1/8 mu = 2 keeps two ids; after the rarer one mu is 1, and one is left."""

    class Quarters(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.tensor([0.5, 0.25, 0.125, 0.125] + [0.0] * (VOCAB - 4)).log().expand(len(scores), -1)

    for renormalise, second in ((False, {0}), (True, {0})):
        rule = {"sample": {"surprise": 1.0, "rate": 1.0, "renormalise": renormalise}, "when": {}}
        rows, _ = run(
            ". .", (9,), 64, program=program(rule), do_sample=True, seed=3, top_k=0, logits_processor=[Quarters()]
        )
        assert {row[0] for row in rows} == {0, 1}
        assert {row[1] for row in rows if row[0] == 1} == second
        assert {row[1] for row in rows if row[0] == 0} == {0, 1}


def test_what_is_reported():
    never = program(CAP, {"bias": 9, "by": "ban", "when": {}})
    rows, out = run("8 9>14 8 10 6", (9,), 2, program=[never, None], min_new_tokens=1)
    assert rows == [[8, 14, 8, 10, 6], [8, 9, 8, 10, 6]]
    assert out.fired.tolist() == [[0, 5], [-1, -1]] and out.spans == [[], []]
    assert out.never_armed == [["rules[0] (force)"], []]
    _, out = run("8 9 . . 6", rows=1, program=never)
    assert out.spans == [[("think", 0, 3, "rule")]] and type(out.spans[0][0]) is tuple and out.never_armed == [[]]
    plain = run("8 9 6")[1]
    assert plain.fired is None and plain.spans is None and plain.forced is None


def test_programs_per_row_and_per_prompt():
    cap, ban = program(CAP), program({"bias": 8, "by": "ban", "when": {}})
    wishes, own = "8>9 8>9 8>9 8>9 10 6", {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    capped, banned, free = [8, 8, 3, 2, 10, 6], [9, 9, 9, 9, 10, 6], [8, 8, 8, 8, 10, 6]
    assert run(wishes, rows=2, program=[cap, ban], **own)[0] == [capped, capped, banned, banned]
    rows, out = run(wishes, rows=2, program=[cap, None, ban, [cap, ban]], **own)
    assert rows == [capped, free, banned, [9, 9, 3, 2, 10, 6]]
    assert out.fired.tolist() == [[1, -1], [-1, -1], [6, -1], [1, 4]]


def test_row_inputs_are_bounds_sequences_and_registers():
    rules = program(
        {"force": {"input": "hint"}, "when": {"at": 0}},
        {"force": [2], "when": {"in": "think", "count": [{"input": "cap"}, None]}},
        {"bias": 8, "by": "ban", "when": {"if": {"easy": [1, None]}}},
    )
    inputs = {"hint": [[10], [11, 12]], "cap": [3, None], "easy": torch.tensor([0.0, 1.0])}
    rows, _ = run("8>9 8>9 8>9 8>9 8>9 6", rows=2, program=rules, program_inputs=inputs)
    assert rows == [[10, 8, 8, 2, 8, 6], [11, 12, 9, 9, 9, 6]]


SIGNALS = {
    "top1": [0.9, None],
    "entropy": [0, 0.1],
    "certainty": [0.9, None],
    "margin:9": [None, 2.5],
    "rank:9": [3, 4],
    "conf:2": [None, 1.0],
    "logp": [-0.4, None],
}


def test_signals_are_those_of_the_model():
    """Steps 1 and 3 are torn between 8, 10 and 9 (p = .67, .24, .09), the others are sure."""
    wishes = "8 8>10>9 8 8>10>9 8 6"
    # "logp" is of the token before: of one that the model was sure of.
    torn = {"margin:9", "rank:9", "conf:2", "logp"}
    for name, limits in SIGNALS.items():
        rules = program({"bias": 8, "by": "ban", "when": {"if": {name: limits}}})
        rows, _ = run(wishes, (9,), program=rules)
        at = [step for step, token in enumerate(rows[0][:5]) if token != 8]
        assert at == ([1, 3] if name in torn else [0, 2, 4]), name


def test_sample_rules_set_rows_apart():
    ids = prompts(1, 6).expand(24, -1)
    hot = ak.Program.from_dict({"rules": [{"sample": {"temperature": 3.0, "top_k": 0}, "when": {"at": [3, None]}}]})
    sure = ak.Program.from_dict({"rules": [{"sample": {"temperature": 0.0}, "when": {}}]})
    with ak.patched(shared("llama"), ak.Modes(fast=FAST, slow=SLOW)) as model:
        settings = {"max_new_tokens": 8, "eos_token_id": None, "return_dict_in_generate": True, "seed": 5}
        greedy = model.generate(ids, do_sample=False, **settings).sequences
        free = model.generate(ids, do_sample=True, top_k=8, **settings).sequences
        given = [hot, sure, None] * 8
        mixed = model.generate(ids, do_sample=True, top_k=8, program=given, **settings).sequences
        warmed = model.generate(ids, do_sample=False, program=given, **settings).sequences
    assert torch.equal(mixed[1::3], greedy[1::3]) and torch.equal(mixed[2::3], free[2::3])
    assert torch.equal(mixed[::3, :9], free[::3, :9]) and (mixed[::3, 9:] != free[::3, 9:]).any(1).all()
    assert torch.equal(warmed[:, :9], greedy[:, :9]) and torch.equal(warmed[1::3], greedy[1::3])
    assert len(warmed[::3, 9:].unique(dim=0)) == 8


def test_a_gate_of_a_program_chooses_by_its_probability():
    rules = program(
        {"gate": {"skip": {"seq": [[2, 12]]}, "think": {"seq": [[3, 13]]}}, "prob": 0.3, "when": {"at": 1}},
        {"bias": 8, "by": "ban", "when": {"mode": "skip"}},
    )
    for more in ({"do_sample": False}, {"do_sample": True, "top_k": 1}, {"do_sample": True, "output_logits": True}):
        rows, out = run("8 . . 8>9 6", rows=400, program=rules, seed=1, return_logprobs=True, **more)
        skip = [row for row in rows if row[1] == 2]
        assert all(row[:3] in ([8, 2, 12], [8, 3, 13]) for row in rows)
        assert 0.22 < len(skip) / len(rows) < 0.38  # 3.5 standard deviations
        assert {tuple(row[3:4]) for row in skip} == {(9,)} or "output_logits" in more
        assert out.forced[:, 1].sum() == 0 and out.forced[:, 2].all()
        of_skip = torch.tensor([row[1] == 2 for row in rows])
        expected = torch.where(of_skip, 0.3, 0.7).log()
        assert torch.allclose(out.logprobs[:, 1], expected, atol=1e-5)


def test_modes_of_the_call_are_known_to_programs():
    modes = ak.Modes(fast=12, slow=13)
    rules = program({"bias": 8, "by": "ban", "when": {"mode": "fast"}})
    for plan, more in PLANS:
        rows, out = run(". 8>9 8>9 6", (9,), 2, modes, program=rules, mode=["fast", "slow"], **more)
        assert rows == [[12, 9, 9, 6], [13, 8, 8, 6]] and out.stats.plan == plan
    long = ak.Modes(fast=(10, 12, 4), slow=(10, 13))
    everywhere = program({"bias": 8, "by": "ban", "when": {}}, {"force": [3], "when": {"after": 8}})
    rows, out = run(". . . 8>9 8>9 6", (9,), 2, long, program=everywhere, mode=["fast", "slow"])
    assert rows == [[10, 12, 4, 9, 9, 6], [10, 13, 14, 9, 9, 6]]
    # Nothing acts on what the mode writes.
    assert out.fired.tolist() == [[3, 0], [4, 0]]


def test_seeded_rows_are_the_same_in_any_batch():
    rules = program(
        {"bias": {"seq": [[20], [21]]}, "by": 2.0, "when": {}, "p": 0.5},
        {"force": [9, 8], "when": {"after": [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]}, "p": 0.5},
        spans={},
    )
    ids, seeds = prompts(6, 6), torch.arange(6) + 11
    model = ak.patch(build("llama"), ak.Modes(fast=FAST, slow=SLOW))
    settings = {"max_new_tokens": 16, "do_sample": True, "top_k": 0, "eos_token_id": list(range(60, 70))}
    settings |= {"program": rules, "pad_token_id": PAD, "return_dict_in_generate": True}
    whole = model.generate(ids, seed=seeds, compact_at=1.0, **settings)
    assert whole.lengths.min() < whole.lengths.max() and (whole.fired > 0).all(1).any()
    assert whole.stats.row_steps < whole.stats.row_steps_padded
    order = torch.tensor([4, 2, 0])
    for more in ({}, {"output_logits": True}, {"compact_at": 0.0}):
        part = model.generate(ids[order], seed=seeds[order], **settings, **more)
        for row, other in enumerate(order.tolist()):
            n = int(whole.lengths[other])
            assert part.lengths[row] == n
            assert torch.equal(part.sequences[row, : 6 + n], whole.sequences[other, : 6 + n])
            assert torch.equal(part.fired[row], whole.fired[other])


def test_rows_that_a_rule_ends_leave():
    stop = {"force": [], "stop": True, "when": {"in": "think", "entry": 2}}
    for plan, more in PLANS:
        rows, out = run("8 2 9 1 8 8 6", rows=2, program=[program(stop), None], **more)
        assert rows == [[8, 2, 9, 1], [8, 2, 9, 1, 8, 8, 6]] and out.stats.plan == plan
        assert out.sequences[0, 5:].tolist() == [PAD] * 3 and out.fired.tolist() == [[1], [-1]]
        last = {"force": [3, 10], "stop": True, "when": {"after": 9}}
        rows, out = run("8 9 . . 8 6", program=program(last), eos_token_id=None, **more)
        assert rows == [[8, 9, 3, 10]] and out.sequences.shape[1] == 5
    # A row that has ended, or has all its tokens, is not ended again.
    for position, eos in ((2, 9), (2, None), (1, None)):
        late = program({"force": [], "stop": True, "when": {"at": position}})
        rows, out = run("8 9", program=late, eos_token_id=eos)
        assert (rows, out.fired.tolist()) == (([[8]], [[1]]) if position == 1 else ([[8, 9]], [[0]]))
    # A signal of the step itself ends the row before its token: the column that was computed is padding.
    unsure = {"force": [], "stop": True, "when": {"if": {"top1": [None, 0.9]}}}
    for plan, more in PLANS:
        rows, out = run("8 8>9 8 6", rows=1, program=program(unsure), **more)
        assert rows == [[8]] and out.sequences.tolist() == [[1, 8, PAD]] and out.stats.plan == plan


def test_the_mode_s_own_closing_comes_after_the_program():
    modes = ak.Modes(fast=12, slow=ak.Mode(1, max_new_tokens=4, closing=(9, 2), close=2))
    own = {"modes": modes, "mode": "slow", "eos_token_id": None}
    assert run(". 8 8 8 . . 8 8", (9,), **own)[0] == [[1, 8, 8, 8, 9, 2, 8, 8]]
    both = program({"force": [3, 2], "when": {"in": "think", "count": [3, None]}})
    rows, out = run(". 8 8 8 . . 8 8", (9,), program=both, **own)
    assert rows == [[1, 8, 8, 8, 3, 2, 8, 8]] and out.fired.tolist() == [[1]]
    later = program({"force": [3, 2], "when": {"in": "think", "count": [4, None]}})
    rows, out = run(". 8 8 8 . . 8 8", (9,), program=later, **own)
    # Half of the mode's closing is no reason to begin another one.
    assert rows == [[1, 8, 8, 8, 9, 2, 8, 8]] and out.fired.tolist() == [[0]]
    gate = program({"gate": {"a": 10, "b": 11}, "when": {"after": 8, "at": [4, None]}})
    rows, out = run(". 8 8 8 . . 8 10", (9,), program=gate, **own)
    assert rows[0] == [1, 8, 8, 8, 9, 2, 8, 10] and out.fired.tolist() == [[1]]


def test_log_probs_are_of_what_stands_there():
    replace = program({"force": [9], "when": {"drawn": 8, "times": 1}}, {"bias": 9, "by": -1.0, "when": {}})
    rows, out = run("8>9 8>9 6", program=replace, return_logprobs=True, do_sample=True, top_k=1)
    biased = torch.tensor([0.0, -2.0]).log_softmax(0)
    assert rows == [[9, 8, 6]] and out.forced.tolist() == [[True, False, False]]
    assert torch.allclose(out.logprobs[0, :2], biased[[1, 0]], atol=1e-5)


def test_no_program_costs_no_call(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a program was compiled or stepped")

    monkeypatch.setattr(ProgramRun, "__init__", fail)
    for given in ({}, {"program": None}, {"program": [None]}, {"thinking_budget": None}, {"thinking_budget": [None]}):
        assert run("8 9 6", **given)[0] == [[8, 9, 6]]
    with pytest.raises(AssertionError, match="compiled or stepped"):
        run("8 9 6", program=program(CAP))


def test_what_is_forced_passes_every_mask():
    cap = program(CAP)
    for settings in ({"suppress_tokens": [2, 3]}, {"min_new_tokens": 6}, {"do_sample": True, "min_p": 0.9}):
        rows, _ = run("8 8 . . 10 10 6", program=cap, **settings)
        assert rows[0][:4] == [8, 8, 3, 2]
