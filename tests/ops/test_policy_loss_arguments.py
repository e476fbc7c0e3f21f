"""Bad arguments of policy_loss: each a clear error."""

import math

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels.ops.token_rows import mask_rows, row_tensor, token_rows

INF, NAN = math.inf, math.nan

BAD = [
    ({"old_logprobs": None}, TypeError, "old_logprobs must be a number or a tensor"),
    ({"old_logprobs": torch.zeros(2)}, ValueError, r"old_logprobs must be a scalar or .*\(3,\); got \(2,\)"),
    ({"advantages": "big"}, TypeError, "advantages must be a number"),
    ({"advantages": torch.zeros(3, dtype=torch.complex64)}, TypeError, "advantages must hold real numbers"),
    ({"kinds": torch.tensor([0, 4, 1])}, ValueError, r"kinds must be 0 \(none\), 1 \(PPO\).*got 4"),
    ({"kinds": torch.zeros(3)}, TypeError, "kinds must hold integers"),
    ({"kinds": [1.5, 1, 0]}, TypeError, "kinds must hold integers"),
    ({"kinds": 1.5}, TypeError, "kinds must hold integers"),
    ({"kinds": [True, False, True]}, TypeError, "kinds must hold integers"),
    ({"weights": torch.zeros(3, 2)}, ValueError, "weights must be a scalar"),
    ({"kl_coef": 0.1}, ValueError, "kl_coef=0.1 needs ref_logprobs"),
    ({"kl_coef": NAN, "ref_logprobs": 0.0}, ValueError, "kl_coef must be finite"),
    ({"clip_low": 1.5}, ValueError, r"clip_low must be in \[0, 1\]"),
    ({"clip_high": -0.1}, ValueError, "clip_high must be at least 0"),
    ({"clip_high": "wide"}, TypeError, "clip_high must be a number"),
    ({"dual_clip": 1.0}, ValueError, "dual_clip must be above 1, or None"),
    ({"entropy_coef": INF}, ValueError, "entropy_coef must be finite"),
    ({"ids": torch.tensor([0, 9, 0])}, ValueError, "ids must be in"),
    ({"grad_scale": 0.0}, ValueError, "grad_scale must be a number above 0"),
    ({"grad_out": 3}, TypeError, "grad_out must be a tensor or None"),
    ({"grad_out": torch.zeros(3, 5)}, ValueError, "grad_out must have the logits' shape"),
    ({"grad_out": torch.zeros(3, 4).half()}, ValueError, "grad_out must have the logits' shape, dtype"),
    ({"grad_out": torch.zeros(4, 3).t()}, ValueError, "contiguous in the last dimension, its rows apart"),
    ({"grad_out": torch.zeros(1, 4).expand(3, 4)}, ValueError, "its rows apart"),
    ({"grad_out": torch.zeros(3, 4), "backend": "reference"}, ValueError, "reference' cannot write into grad_out"),
    ({"backend": "triton"}, ValueError, "policy_loss has no backend='triton'"),
]


@pytest.mark.parametrize(
    ("change", "error", "text"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input(change, error, text):
    base = {"logits": torch.zeros(3, 4), "ids": torch.zeros(3).long(), "old_logprobs": 0.0, "advantages": 1.0}
    with pytest.raises(error, match=text):
        ak.policy_loss(**{**base, **change})


def test_lists_go_to_the_device_of_the_logits():
    there = torch.device("meta")
    assert row_tensor("advantages", [0.7, 1e39], torch.Size([2]), torch.device("cpu"), torch.float64).tolist() == [
        0.7,
        1e39,
    ]
    assert row_tensor("advantages", [1.0, 2.0], torch.Size([2]), there, torch.float64).device == there
    assert mask_rows([True, False], torch.Size([2]), there).device == there
    with pytest.raises(ValueError, match=r"temperature must be above 0 and finite; got -1"):
        token_rows(torch.zeros(2, 9, device=there), torch.zeros(2, dtype=torch.int64, device=there), None, [1.0, -1.0])
    with pytest.raises(ValueError, match="mask must be boolean, or 0 and 1; got 3"):
        mask_rows([1, 3], torch.Size([2]), there)
    with pytest.raises(ValueError, match="advantages must be on the device of logits, meta; got cpu"):
        row_tensor("advantages", torch.ones(2), torch.Size([2]), there, torch.float64)
