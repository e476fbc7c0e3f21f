"""policy_loss as a torch op: gradcheck, no second derivative, torch.compile, torch's own checks."""

import pytest
import torch
from policy_loss_rows import rows_of

import adapt_kernels as ak


@pytest.fixture
def backend(credit_backend):
    return credit_backend


def test_gradcheck_of_the_reference():
    generator = torch.Generator().manual_seed(13)
    logits = torch.randn(9, 6, dtype=torch.float64, generator=generator).requires_grad_()
    ids = torch.randint(0, 6, (9,), generator=generator)
    old = torch.log_softmax(logits.detach(), 1).gather(1, ids[:, None]).squeeze(1) + torch.linspace(-0.9, 0.9, 9)
    advantages, kinds = torch.tensor([1.0, -1, 2, -2, 1, -1, 1, -1, 3]), torch.tensor([1, 1, 1, 1, 1, 1, 3, 3, 0])

    def loss(x):
        return ak.policy_loss(
            x, ids, old, advantages, None, kinds, ref_logprobs=old - 0.3, kl_coef=0.2, entropy_coef=0.1, temperature=0.8
        ).loss

    assert loss(logits).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, logits)


def test_there_is_no_second_derivative(backend):
    logits, ids, old = rows_of(3, 40, 16)
    leaf = logits.clone().requires_grad_()
    loss = ak.policy_loss(leaf, ids, old, 1.0, backend=backend).loss
    with pytest.raises(RuntimeError, match="policy_loss has no second derivative"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_compiles_without_a_graph_break(native):
    logits, ids, old = rows_of(11, 60, 14)
    mask = torch.arange(11) != 4

    def step(x):
        return ak.policy_loss(2 * x, ids, old, 1.0, mask, entropy_coef=0.1).loss * 1.0

    grads = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        run(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_the_ops_pass_torchs_own_checks(native):
    logits, ids, old = rows_of(5, 40, 15)
    tokens = (logits.unsqueeze(1).requires_grad_(), ids, None, 1.0, None)
    torch.library.opcheck(torch.ops.adapt_kernels.token_logprobs.default, tokens)
    rows = (*tokens, old.double(), torch.ones(5).double(), None, None, None, 0.2, 0.28, 3.0, 0.0, 0.0, 1.0)
    torch.library.opcheck(torch.ops.adapt_kernels.policy_loss.default, (*rows, True))
    detached = (logits.unsqueeze(1), *rows[1:], torch.empty(5, 1, 40))
    torch.library.opcheck(torch.ops.adapt_kernels.policy_loss_.default, detached)
