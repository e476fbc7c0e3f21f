"""generate(program=): what is refused, by text, before anything is computed or where nothing is left."""

import pytest
import torch
from scripted_model import EOS, PAD, run, scripted

import adapt_kernels as ak

THINK = {"think": {"open": 1, "close": 2, "breaks": 7}}
CAP = {"force": [3, 2], "when": {"in": "think", "count": [2, None]}}


def program(*rules, spans=THINK):
    return ak.Program.from_dict({"spans": spans, "rules": list(rules)})


GATE = {"gate": {"a": 8, "b": 9}, "when": {"at": 0}}
REFUSED = [
    ({"program": "budget"}, TypeError, "program must be an adapt_kernels.Program"),
    ({"program": [CAP, None]}, TypeError, "a row's program must be a Program"),
    (
        {"program": [None] * 3},
        ValueError,
        r"program must be one value, or one per row \(2 = 2 prompts x 1 samples\); got shape \(3,\)",
    ),
    ({"program": program({"bias": 16, "by": "ban", "when": {}})}, ValueError, "token id 16 is outside the vocabulary"),
    ({"program": program({"force": [99, 2], "when": {"at": 1}})}, ValueError, "token id 99 is outside the vocabulary"),
    ({"program": program(CAP), "rng": "hf"}, ValueError, "program draws from a stream of each row, and rng='hf'"),
    ({"program": program(GATE), "mode": "fast"}, ValueError, r"rules\[0\] \(gate\) acts at position 0, where mode"),
    ({"program": program(GATE), "mode_bias": 1.0}, ValueError, r"rules\[0\] \(gate\) acts at position 0, where mode"),
    (
        {"program": program({"gate": {"a": 8, "b": 9}, "when": {"after": 1}}), "fast_prob": 0.5},
        ValueError,
        r"the gate \['a', 'b'\] of row 0 acts at position 0",
    ),
    (
        {"program": program({"force": [8], "when": {"count": [0, 4]}}), "mode": "fast"},
        ValueError,
        "the program of row 0 acts at position 0",
    ),
    (
        {"program": program({"bias": 8, "by": "ban", "when": {"mode": "medium"}})},
        ValueError,
        "no gate has the mode 'medium'; the modes are 'fast', 'slow'",
    ),
    (
        {"program": program({"bias": 8, "by": "ban", "when": {"if": {"x": [0, 1]}}})},
        ValueError,
        "the program reads the row input 'x'",
    ),
    ({"program": program(CAP), "program_inputs": {"x": [1, 2]}}, ValueError, "no rule reads the row input 'x'"),
    ({"program_inputs": {"x": [1, 2]}}, ValueError, "no program reads 'x'; give program= too"),
    ({"program": program(CAP), "program_inputs": [1]}, TypeError, "program_inputs must be {name"),
    (
        {"program": program(CAP), "program_inputs": {"x": [1, 2, 3]}},
        ValueError,
        r"program_inputs\['x'\] must be one value, or one per row",
    ),
    (
        {"program": program({"force": [], "stop": True, "when": {"at": 1}}), "min_new_tokens": 3},
        ValueError,
        "may do so before min_new_tokens=3",
    ),
    ({"program": program(CAP), "num_beams": 2}, ValueError, "program cannot be honoured by this call: beam search"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_refused_before_anything_is_computed(arguments, error, message):
    model = ak.patch(scripted("8 8 8 8", (1,)), ak.Modes(fast=12, slow=13))
    model.forward = None  # nothing may be computed
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        model.generate(torch.tensor([[1], [1]]), max_new_tokens=4, pad_token_id=PAD, **arguments)
    assert torch.equal(torch.get_rng_state(), state)


def test_refused_before_the_prefill():
    heat = program({"sample": {"temperature": 2.0}, "when": {}})
    with pytest.raises(ValueError, match=r"rules\[0\] \(sample\) sets .*TypicalLogitsWarper"):
        run("8 8", program=heat, do_sample=True, typical_p=0.5)
    with pytest.raises(ValueError, match=r"output_scores shows .*rules\[0\] \(sample\) has others"):
        run("8 8", program=heat, do_sample=True, output_scores=True)
    with pytest.raises(ValueError, match="a rule with 'stop' needs a pad token"):
        stop = program({"force": [], "stop": True, "when": {"at": 1}})
        run("8 8", program=stop, pad_token_id=None, eos_token_id=None)


def test_rules_that_leave_nothing_are_named():
    two = program({"bias": [8, 9], "by": "only", "when": {"at": 1}}, {"bias": [8, 9], "by": "ban", "when": {"at": 1}})
    for settings in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        with pytest.raises(ValueError, match=r"row 1: rules\[0\] \(bias\), rules\[1\] \(bias\) leave no token"):
            run("8 8 8", rows=2, program=[None, two], **settings)
        gate = program({"gate": {"a": 8, "b": 9}, "when": {"at": 1}})
        with pytest.raises(ValueError, match=r"row 1: every mode of rules\[0\] \(gate\) has logit -inf"):
            run("8 8 8", rows=2, program=[None, gate], suppress_tokens=[8, 9], **settings)
    assert EOS not in run("8 8 8", program=program(CAP), suppress_tokens=[2, 3])[0][0]
