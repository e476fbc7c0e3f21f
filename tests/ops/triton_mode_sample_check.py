"""Rows, filters and the comparison with the reference that the triton_mode_sample_*cases.py share."""

import torch

from adapt_kernels.ops.mode_sample import reference, triton_kernel
from adapt_kernels.ops.mode_sample.arguments import check_values, prepare

INF, NAN = float("inf"), float("nan")
# The interpreter pays per operation, not per element: large blocks, few programs.
CONFIG = triton_kernel.Config(draw_groups=64, few_rows_read_groups=256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    logits, config=CONFIG, *, modes=None, mode_bias=None, seeds=5, only_modes=True, class_edits=(None,) * 3, **arguments
):
    defaults = {
        "at_mode": False,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "step": 0,
        "fast_prob": NAN,
        "forced_tokens": -1,
    }
    rows = check_values(prepare(logits, modes, mode_bias, seeds, only_modes, class_edits, **(defaults | arguments)))
    return triton_kernel.mode_sample(rows, config), reference.mode_sample(rows)


def check(logits, config=CONFIG, **arguments):
    got, want = sample(logits, config, **arguments)
    for name in ("tokens", "modes", "kept", "flags"):
        assert getattr(got, name).tolist() == getattr(want, name).tolist(), name
        assert getattr(got, name).dtype == getattr(want, name).dtype, name
    for name in ("logprobs", "raw_logprobs", "tempered_logprobs", "mode_probs"):
        assert torch.allclose(getattr(got, name), getattr(want, name), rtol=0, atol=2e-6), name
    return got


def nasty_rows(vocab_size, dtype):
    """Eight rows: equal, all -inf, one finite, first half -inf, one NaN, all NaN, one +inf, two +inf."""
    x = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    x[0], x[1], x[2], x[5] = 1.5, -INF, -INF, NAN
    x[2, vocab_size // 2] = -7
    x[3, : vocab_size // 2] = -INF
    x[4, 0], x[6, -1], x[7, 0], x[7, vocab_size // 3] = NAN, INF, INF, INF
    return x.to(dtype)


def spread_rows(vocab_size, dtype):
    """Eight rows: ties in steps of 1/4, far apart, offset, peaked, two levels, signed zeros, flat, one-hot."""
    x = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    x[0] = (x[0] * 4).round() / 4
    x[1] *= 3000
    x[2] = x[2].mul(0.5) + 30000
    x[3] = -2 * torch.arange(1, vocab_size + 1).log()
    x[4] = (x[4] > 1).float() * 8
    x[5] = torch.where(x[5] > 0, 0.0, -0.0)
    x[7] = -20
    x[7, vocab_size // 2] = 0
    return x.to(dtype)


def mixed_filters(vocab_size):
    """All filters at once, other values in each of eight rows; 0 and inf among the temperatures."""
    tensor = torch.tensor
    return {
        "top_k": tensor([1, 2, 3, 2**30, max(vocab_size - 1, 1), vocab_size, 0, 50]),
        "top_p": tensor([0.5, 0.9, 0, 0.3, 0.99, 1, 1e-9, 1 - 1e-7], dtype=torch.float64),
        "min_p": tensor([0, 0.1, 0.05, 1, 0, 1e-6, 0.5, 0], dtype=torch.float64),
        "temperature": tensor([1, 0.7, 0, 1e-3, 1e4, INF, 1, 2], dtype=torch.float64),
        "step": torch.arange(8),
        "seeds": torch.arange(8) * 2**61 - 3,
    }
