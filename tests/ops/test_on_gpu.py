"""What carries the tests of the ops to a GPU does not change what they see: tried with the CPU as the device."""

import torch
from on_gpu import CUDA, moved

import adapt_kernels as ak


def test_results_and_gradients_come_back():
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(5, 30, generator=generator), torch.arange(5)
    arguments = ids, torch.full((5,), -3.0), torch.linspace(-1, 1, 5)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    carried = moved(ak.policy_loss, CUDA, "native", device="cpu")
    outs = [
        ak.policy_loss(leaves[0], *arguments, backend="native"),
        carried(leaves[1], *arguments, backend=CUDA),
    ]
    for out in outs:
        out.loss.backward()
    assert outs[1]._fields == outs[0]._fields
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True)) and torch.equal(leaves[0].grad, leaves[1].grad)
    score = moved(ak.token_logprobs, CUDA, "native", device="cpu")(logits, ids, backend=CUDA)
    assert torch.equal(score[0], outs[0].logprobs) and score[1] is None
    seen = []
    record = moved(lambda *tensors, backend: seen.extend((backend, *tensors)) or (), CUDA, "native", "meta")
    record(logits, backend=CUDA)
    assert seen[0] == "native" and seen[1].device.type == "meta"
    assert moved(lambda *_, backend: backend, CUDA, "native")(logits, backend="reference") == "reference"
