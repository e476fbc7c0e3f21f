"""policy_loss and its gradient against TRL's log-prob and clipped loss through autograd; the head's path on top of it.

A case is `vocabulary-rows-dtype-peer`. `buffer`: the gradient goes into memory used before; `halfmasked`, `tenthlive`:
half and nine tenths of the rows are masked; `halfzero`: half of the advantages are 0; `trl`: rows as 8 sequences, as
its trainers hold them, `trl_flat`: as one [N, V]; `trl_entropy`: with every row's entropy, as its GRPO trainer has it;
`torch_compile`: plain PyTorch for the flat rows, compiled; `credit_peers` has the others.
"""

from functools import partial

import pytest
import torch
from credit_inputs import (
    batched,
    call_or_skip,
    compiled,
    make_logits,
    make_rows,
    one_read,
    plain_score,
    ppo,
    skip_too_large,
    trl_functions,
)
from credit_peers import LOSSES

import adapt_kernels as ak

# density, share of zero advantages, gradient into a buffer
OURS = {
    "adapt_kernels": (1.0, 0.0, False),
    "buffer": (1.0, 0.0, True),
    "halfmasked": (0.5, 0.0, False),
    "halfmasked_buffer": (0.5, 0.0, True),
    "tenthlive": (0.1, 0.0, False),
    "halfzero": (1.0, 0.5, False),
}
# Rounds: page faults of fresh memory make single ones vary by a factor of two.
LEAST = 3
HEAD_ROWS, HEAD_WIDTH, HEAD_VOCABULARY = 512, 256, 151936


def gradient(loss, *tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss(*leaves).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("peer", ["one_read", *OURS, "trl", "trl_flat", "trl_entropy", "torch_compile", *LOSSES])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [16, 512, 8192], ids=lambda n: f"rows{n}")
@pytest.mark.parametrize("vocab_size", [32000, 151936], ids=lambda n: f"V{n}")
def test_policy_loss(measure, vocab_size, rows, dtype, peer):
    skip_too_large(rows, vocab_size, dtype, light=peer in ("one_read", *OURS))
    logits = make_logits(rows, vocab_size, dtype)
    density, zero_share, buffered = OURS.get(peer, (1.0, 0.0, False))
    ids, old, advantages, mask = make_rows(logits, density, zero_share)
    if peer == "one_read":
        return measure(one_read(logits))
    if peer in LOSSES:
        return measure(call_or_skip(LOSSES[peer], logits, ids, old, advantages), LEAST, fresh=logits.nbytes)
    if peer == "torch_compile":
        plain = compiled(lambda x: ppo(plain_score(x, ids)[0], old, advantages), logits)
        return measure(partial(gradient, plain, logits), LEAST, fresh=logits.nbytes)
    logprob, entropy = trl_functions()

    def trl(x, *rows):
        if peer == "trl_entropy":
            with torch.no_grad():
                entropy(x)
        index, *values = rows
        return ppo(logprob(x, index), *values)

    if peer.startswith("trl"):
        x, *of_rows = (logits, ids, old, advantages) if peer == "trl_flat" else batched(logits, ids, old, advantages)
        return measure(partial(gradient, lambda leaf: trl(leaf, *of_rows), x), LEAST, fresh=logits.nbytes)
    few = slice(0, 4)
    ours = ak.policy_loss(logits[few].requires_grad_(), ids[few], old[few], advantages[few], weights=0.25)
    theirs = trl(logits[few].float(), ids[few], old[few], advantages[few])
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-3, atol=1e-4)
    out = torch.zeros_like(logits) if buffered else None
    weight = 1 / (rows * density)

    def loss(x):
        return ak.policy_loss(x, ids, old, advantages, mask, weights=weight, grad_out=out).loss

    measure(partial(gradient, loss, logits), LEAST, fresh=0 if buffered else logits.nbytes)


@pytest.mark.parametrize("peer", ["three_gemms", "adapt_kernels", "halfmasked", "trl"])
def test_linear_policy_loss(measure, peer):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(HEAD_ROWS, HEAD_WIDTH, generator=generator)
    weight = 0.05 * torch.randn(HEAD_VOCABULARY, HEAD_WIDTH, generator=generator)
    ids = torch.randint(0, HEAD_VOCABULARY, (HEAD_ROWS,), generator=generator)
    old, advantages = torch.full((HEAD_ROWS,), -12.0), torch.randn(HEAD_ROWS, generator=generator)
    mask = torch.arange(HEAD_ROWS) % 2 == 0 if peer == "halfmasked" else None
    if peer == "three_gemms":
        logits = torch.empty(HEAD_ROWS, HEAD_VOCABULARY)
        return measure(lambda: (torch.mm(hidden, weight.t(), out=logits), logits @ weight, logits.t() @ hidden), LEAST)
    if peer == "trl":
        chunked = pytest.importorskip("trl.kernels", reason="trl is not installed").ChunkedLogProbFunction

        def loss(h, w):
            logprobs = chunked.apply(h, w, None, ids, 1.0, 32768, None, 1.0, ("log_probs",))[0]
            return ppo(logprobs, old, advantages)
    else:

        def loss(h, w):
            return ak.linear_policy_loss(h, w, ids, old, advantages, mask, weights=1 / HEAD_ROWS).loss

    measure(partial(gradient, loss, hidden, weight), LEAST)
