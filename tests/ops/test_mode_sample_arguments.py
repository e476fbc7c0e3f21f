"""Bad input to mode_sample: each is an error that names the argument, before anything is drawn."""

import math

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels.ops.mode_sample.arguments import check_values, prepare

LOGITS = torch.zeros(4, 9)
MODES = ak.Modes(fast=5, slow=6)
GATE = {"modes": MODES, "at_mode": True}
NAN, INF = math.nan, math.inf

# name: (arguments, error, words of its text in order)
BAD = {
    "logits of integers": ({"logits": LOGITS.long()}, TypeError, r"logits.*float32.*bfloat16.*int64"),
    "logits of booleans": ({"logits": LOGITS.bool()}, TypeError, r"logits.*float32.*bool"),
    "logits of complex": ({"logits": LOGITS.to(torch.complex64)}, TypeError, r"logits.*float32.*complex64"),
    "logits as list": ({"logits": [[0.0, 1.0]]}, TypeError, r"logits.*tensor.*list"),
    "logits as array": ({"logits": LOGITS.numpy()}, TypeError, r"logits.*tensor.*ndarray"),
    "logits 1-D": ({"logits": LOGITS[0]}, ValueError, r"logits.*\[N, V\].*\(9,\)"),
    "logits 0-D": ({"logits": torch.tensor(1.0)}, ValueError, r"logits.*\[N, V\].*\(\)"),
    "logits 4-D": ({"logits": torch.zeros(1, 1, 1, 9)}, ValueError, r"logits.*\[B, T, V\].*\(1, 1, 1, 9\)"),
    "no vocabulary": ({"logits": torch.zeros(4, 0)}, ValueError, r"logits.*V >= 1.*\(4, 0\)"),
    "transposed": ({"logits": torch.zeros(9, 4).T}, ValueError, r"logits.*contiguous.*last.*strides \(1, 4\)"),
    "every other column": ({"logits": torch.zeros(4, 18)[:, ::2]}, ValueError, r"logits.*contiguous.*\(18, 2\)"),
    "expanded columns": ({"logits": torch.zeros(4, 1).expand(4, 9)}, ValueError, r"logits.*contiguous"),
    "mode id is V": ({"modes": (5, 9)}, ValueError, r"9.*outside.*9 tokens"),
    "mode id beyond V": ({"modes": ak.Modes(fast=5, slow=151668)}, ValueError, r"151668.*outside.*9 tokens"),
    "negative mode id": ({"modes": (5, -1)}, ValueError, r"ids.*>= 0.*-1"),
    "equal mode ids": ({"modes": (5, 5)}, ValueError, r"same ids.*5"),
    "one mode": ({"modes": (5,)}, ValueError, r"at least two modes.*1"),
    "two any-other modes": ({"modes": (None, None)}, ValueError, r"only one mode.*any other"),
    "mode as text": ({"modes": ("<think>", 5)}, TypeError, r"<think>.*from_tokenizer"),
    "at_mode without modes": ({"at_mode": True}, ValueError, r"at_mode.*need modes=.*None"),
    "mode_bias without modes": ({"mode_bias": 1.0}, ValueError, r"mode_bias.*need modes=.*None"),
    "fast_prob without modes": ({"fast_prob": 0.5}, ValueError, r"fast_prob.*need modes=.*None"),
    "at_mode of wrong length": ({**GATE, "at_mode": [True] * 3}, ValueError, r"at_mode.*\(4,\).*\(3,\)"),
    "at_mode as floats": ({**GATE, "at_mode": torch.ones(4)}, TypeError, r"at_mode.*float32"),
    "at_mode as one count": ({**GATE, "at_mode": torch.tensor(2)}, TypeError, r"at_mode.*boolean.*2"),
    "at_mode as counts": ({**GATE, "at_mode": [0, 1, 2, 0]}, TypeError, r"at_mode.*boolean.*2"),
    "temperature NaN": ({"temperature": NAN}, ValueError, r"temperature.*>= 0.*nan"),
    "temperature negative": ({"temperature": -0.5}, ValueError, r"temperature.*>= 0.*-0\.5"),
    "one temperature NaN": ({"temperature": [1.0, 1.0, NAN, 1.0]}, ValueError, r"temperature.*>= 0.*nan"),
    "temperature of wrong length": ({"temperature": [1.0] * 5}, ValueError, r"temperature.*\(4,\).*\(5,\)"),
    "temperature as column": ({"temperature": torch.ones(4, 1)}, ValueError, r"temperature.*\(4,\).*\(4, 1\)"),
    "temperature as text": ({"temperature": "hot"}, TypeError, r"temperature.*number.*hot"),
    "temperature None": ({"temperature": None}, TypeError, r"temperature.*number.*None"),
    "top_k as float": ({"top_k": 5.0}, TypeError, r"top_k.*integers.*float"),
    "top_k of wrong length": ({"top_k": [1, 2]}, ValueError, r"top_k.*\(4,\).*\(2,\)"),
    "top_p above 1": ({"top_p": 1.01}, ValueError, r"top_p.*\[0, 1\].*1\.01"),
    "top_p negative": ({"top_p": -0.1}, ValueError, r"top_p.*\[0, 1\].*-0\.1"),
    "top_p NaN": ({"top_p": NAN}, ValueError, r"top_p.*\[0, 1\].*nan"),
    "top_p in percent": ({"top_p": [0.9, 90.0, 0.9, 0.9]}, ValueError, r"top_p.*\[0, 1\].*90\.0"),
    "min_p above 1": ({"min_p": 1.5}, ValueError, r"min_p.*\[0, 1\].*1\.5"),
    "min_p negative": ({"min_p": -1e-9}, ValueError, r"min_p.*\[0, 1\].*-1e-09"),
    "min_p NaN": ({"min_p": NAN}, ValueError, r"min_p.*\[0, 1\].*nan"),
    "min_p of wrong length": ({"min_p": [0.1] * 3}, ValueError, r"min_p.*\(4,\).*\(3,\)"),
    "top_k past 64 bits": ({"top_k": 2**63}, ValueError, r"top_k must fit 64 bits"),
    "seeds as floats": ({"seeds": torch.zeros(4)}, TypeError, r"seeds.*integers.*float32"),
    "seed as float": ({"seeds": 1.0}, TypeError, r"seeds.*integers.*float"),
    "seed as text": ({"seeds": "7"}, TypeError, r"seeds.*number.*7"),
    "seed beyond 64 bits": ({"seeds": 2**64}, ValueError, r"seed.*64 bits.*18446744073709551616"),
    "seeds of wrong length": ({"seeds": torch.arange(5)}, ValueError, r"seeds.*\(4,\).*\(5,\)"),
    "step as float": ({"step": 0.5}, TypeError, r"step.*integers.*float"),
    "step of wrong length": ({"step": [1, 2]}, ValueError, r"step.*\(4,\).*\(2,\)"),
    "fast_prob 0": ({**GATE, "fast_prob": 0.0}, ValueError, r"fast_prob.*\(0, 1\).*0\.0"),
    "fast_prob 1": ({**GATE, "fast_prob": 1.0}, ValueError, r"fast_prob.*\(0, 1\).*1\.0"),
    "fast_prob negative": ({**GATE, "fast_prob": -0.2}, ValueError, r"fast_prob.*\(0, 1\).*-0\.2"),
    "fast_prob in percent": ({**GATE, "fast_prob": [0.3, 30.0, 0.3, 0.3]}, ValueError, r"fast_prob.*\(0, 1\).*30\.0"),
    "fast_prob of wrong length": ({**GATE, "fast_prob": [0.3] * 3}, ValueError, r"fast_prob.*\(4,\).*\(3,\)"),
    "bias and fast_prob": ({**GATE, "mode_bias": 0.0, "fast_prob": 0.5}, ValueError, r"mode_bias and fast_prob.*one"),
    "fast_prob over all tokens": (
        {**GATE, "fast_prob": 0.5, "only_modes": False},
        ValueError,
        r"fast_prob.*only_modes=True",
    ),
    "bias NaN": ({**GATE, "mode_bias": NAN}, ValueError, r"mode_bias.*nan"),
    "bias of wrong length": ({**GATE, "mode_bias": [1.0] * 3}, ValueError, r"mode_bias.*\(4,\).*\(3,\)"),
    "bias of wrong modes": ({**GATE, "mode_bias": torch.zeros(4, 3)}, ValueError, r"mode_bias.*\(4, 3\)"),
    "bias of an unknown mode": ({**GATE, "mode_bias": {"quick": 1.0}}, ValueError, r"quick.*'fast', 'slow'"),
    "bias by name, wrong length": (
        {**GATE, "mode_bias": {"fast": [1.0] * 3}},
        ValueError,
        r"mode_bias\['fast'\].*\(4,\).*\(3,\)",
    ),
    "bias by name, modes without names": (
        {"modes": (5, 6), "at_mode": True, "mode_bias": {"fast": 1.0}},
        TypeError,
        r"mode_bias by name.*Modes",
    ),
    "forced token beyond V": ({"forced_tokens": 9}, ValueError, r"forced_tokens.*below.*9.*9"),
    "forced token as float": ({"forced_tokens": 3.0}, TypeError, r"forced_tokens.*integers.*float"),
    "forced tokens of wrong length": ({"forced_tokens": [1, 2]}, ValueError, r"forced_tokens.*\(4,\).*\(2,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(sample, name):
    arguments, error, text = BAD[name]
    with pytest.raises(error, match=f"(?s){text}"):
        sample(**{"logits": LOGITS, **arguments})


@pytest.mark.parametrize("name", [name for name in BAD if "logits" not in BAD[name][0]])
def test_bad_values_on_the_host_are_named_whatever_the_device_of_the_logits(name):
    """Once they are on the device, nothing may look at them."""
    arguments, error, text = BAD[name]
    defaults = {"modes": None, "mode_bias": None, "seeds": None, "only_modes": True}
    defaults |= {"at_mode": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "step": 0}
    defaults |= {"fast_prob": NAN, "forced_tokens": -1}
    with pytest.raises(error, match=f"(?s){text}"):
        check_values(prepare(logits=LOGITS.to("meta"), **(defaults | arguments)))


def test_a_class_without_a_column_is_named_whatever_the_device_of_the_logits():
    classes = torch.full((9,), 3, dtype=torch.uint8)
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match="token_classes has class 3, and class_bias 1 columns"):
            ak.mode_sample(LOGITS.to(device), token_classes=classes, class_bias=torch.zeros(4, 1), backend="reference")


def test_no_error_comes_after_a_seed_was_drawn(sample):
    late = []
    for name, (arguments, error, _) in BAD.items():
        before = torch.get_rng_state()
        with pytest.raises(error):
            sample(**{"logits": LOGITS, **arguments})
        if not torch.equal(torch.get_rng_state(), before):
            late.append(name)
    assert not late, "torch's generator has moved"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"backend='cuda'.*'auto'.*'reference'"):
        ak.mode_sample(LOGITS, backend="cuda")


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    from adapt_kernels import dispatch

    monkeypatch.setattr(dispatch, "unavailable_reason", lambda backend: "no driver: install one")
    dispatch._runnable.cache_clear()
    with pytest.raises(RuntimeError, match=r"triton.*cannot run here: no driver: install one"):
        ak.mode_sample(LOGITS, backend="triton")


GOOD = {
    "V = 1 with any stride": {"logits": torch.zeros(1, 4).T},
    "mode id V - 1": {"modes": (0, 8), "at_mode": True},
    "top_k beyond any vocabulary": {"top_k": 2**40},
    "negative top_k": {"top_k": [-1, -5, 0, 3]},
    "limits of top_p and min_p": {"top_p": [0.0, 1.0, 0, 1], "min_p": [0.0, 1.0, 0, 1]},
    "integers for numbers": {"temperature": 2, "top_p": 1, "min_p": 0},
    "half precision arguments": {"temperature": torch.ones(4, dtype=torch.bfloat16)},
    "int32 arguments": {"top_k": torch.ones(4, dtype=torch.int32), "step": torch.ones(4, dtype=torch.int32)},
    "infinite bias": {**GATE, "mode_bias": [INF, -INF, 0.0, 1.0]},
    "named bias of 0": {**GATE, "mode_bias": {"fast": 0}},
    "bias without at_mode": {"modes": MODES, "mode_bias": 1.0},
    "negative forced token": {"forced_tokens": -100},
    "negative step": {"step": -1},
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_input_that_is_allowed(sample, name):
    s = sample(**{"logits": LOGITS, "seeds": 1, **GOOD[name]})
    assert s.tokens.shape == (4,) and s.kept.ge(1).all()


def test_a_python_float_keeps_its_64_bits(sample64):
    # Through float32, .9 is above .9 and the third token would enter.
    logits = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64).log()
    assert sample64(logits, top_p=0.9 - 1e-12, seeds=1).kept.item() == 2
    assert sample64(logits, top_p=0.9 + 1e-12, seeds=1).kept.item() == 3
