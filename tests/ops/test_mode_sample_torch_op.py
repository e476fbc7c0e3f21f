"""mode_sample as a registered torch op: torch.compile sees one call, and nothing else touches the logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adapt_kernels as ak
from adapt_kernels.ops.mode_sample import arguments, torch_op

MODES = ak.Modes(fast=5, slow=6)
ROWS, VOCAB = 4, 1000
EACH = torch.arange(ROWS)

CALLS = {
    "numbers": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seeds": 7, "step": 3},
    "tensors": {"temperature": 0.5 + 0.1 * EACH, "top_k": 10 * EACH, "top_p": 0.2 + 0.2 * EACH, "seeds": EACH},
    "scalar-tensors": {"temperature": torch.tensor(0.7), "seeds": 2**64 - 1},
    "lists": {"temperature": [0.0, 0.5, 1.0, 2.0], "seeds": [3, 2, 1, 0]},
    "gate": {"modes": MODES, "at_mode": True, "mode_bias": 1.5, "seeds": 1},
    "gate-by-row": {"modes": MODES, "at_mode": EACH % 2 == 0, "mode_bias": {"slow": 0.5 * EACH}, "seeds": 1},
    "fast-prob": {"modes": MODES, "at_mode": [1, 0, 1, 0], "fast_prob": 0.3, "seeds": 1},
    "forced": {"forced_tokens": 3 * EACH, "seeds": 1},
}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("call", CALLS)
def test_compiles_without_a_graph_break(call, logits):
    def step(z):
        return ak.mode_sample(z * 1.0, **CALLS[call])

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert same(compiled(logits), step(logits))


def test_without_seeds_two_compiled_calls_differ(logits):
    flat = torch.zeros_like(logits)
    compiled = torch.compile(
        lambda z: (ak.mode_sample(z).tokens, ak.mode_sample(z).tokens), fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(0)
    first = compiled(flat)
    assert not torch.equal(*first)
    torch.manual_seed(0)
    assert same(compiled(flat), first)


def test_bad_values_are_refused_when_the_compiled_code_runs(logits):
    compiled = torch.compile(lambda z, t: ak.mode_sample(z, temperature=t).tokens, backend="aot_eager")
    compiled(logits, torch.ones(ROWS))
    with pytest.raises(ValueError, match="temperature must be"):
        compiled(logits, -torch.ones(ROWS))


@pytest.mark.parametrize("shape", [(ROWS, VOCAB), (2, 2, VOCAB), (0, VOCAB)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_fake_op_agrees_with_the_real_one(shape, dtype):
    values = {"at_mode": False, "temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "step": 0}
    values |= {"fast_prob": float("nan"), "forced_tokens": -1}
    rows = arguments.prepare(torch.randn(shape).to(dtype), MODES, None, 3, True, **values)
    pairs = [item for name in torch_op.ROW_ARGUMENTS for item in (getattr(rows, name), None)]
    torch.library.opcheck(torch_op.OP, (rows.logits, list(rows.mode_ids), None, True, "auto", *pairs))


class Touched(TorchDispatchMode):
    """Names of the ops that read or write a tensor as large as the logits; views move no data."""

    def __init__(self, size):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if torch.is_tensor(t)]
        if any(t.numel() >= self.size for t in tensors) and not func.is_view:
            self.names.append(str(func))
        return out


@pytest.mark.parametrize("call", CALLS)
def test_no_other_op_touches_the_logits(call, logits):
    assert ak.backends()["native"] is None
    ak.mode_sample(logits, **CALLS[call])
    with Touched(logits.numel()) as touched:
        ak.mode_sample(logits, **CALLS[call])
    assert touched.names == ["adapt_kernels.mode_sample.default"]


def test_the_dispatch_mode_would_notice(logits):
    with Touched(logits.numel()) as touched:
        ak.mode_sample(logits.float().clone(), seeds=1, backend="native")
    assert touched.names == ["aten.clone.default", "adapt_kernels.mode_sample.default"]
