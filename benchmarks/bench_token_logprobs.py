"""token_logprobs with entropy against TRL's two functions, torch.compile and cross_entropy (which gives no entropy).

A case is `vocabulary-rows-dtype-peer`; `halfmasked` and `tenthlive` leave out half and nine tenths of the rows;
`trl` has the rows as 8 sequences, as its trainers do, `trl_flat` as one [N, V]; `credit_peers` has the others.
"""

import pytest
import torch
import torch.nn.functional as F
from credit_inputs import (
    batched,
    call_or_skip,
    compiled,
    make_logits,
    make_rows,
    one_read,
    plain_score,
    skip_too_large,
    trl_functions,
)
from credit_peers import SCORES

import adapt_kernels as ak

DENSITY = {"adapt_kernels": 1.0, "halfmasked": 0.5, "tenthlive": 0.1}
# Rounds: page faults of fresh memory make single ones vary by a factor of two.
LEAST = 3
PEERS = ["one_read", *DENSITY, "trl", "trl_flat", "torch_compile", "cross_entropy", *SCORES]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [16, 512, 8192], ids=lambda n: f"rows{n}")
@pytest.mark.parametrize("vocab_size", [32000, 151936], ids=lambda n: f"V{n}")
def test_token_logprobs(measure, vocab_size, rows, dtype, peer):
    skip_too_large(rows, vocab_size, dtype, light=peer in ("one_read", *DENSITY))
    logits = make_logits(rows, vocab_size, dtype)
    ids, old, advantages, mask = make_rows(logits, DENSITY.get(peer, 1.0))
    if peer == "one_read":
        return measure(one_read(logits))
    if peer in SCORES:
        return measure(call_or_skip(SCORES[peer], logits, ids, old, advantages), LEAST, fresh=0)
    if peer == "cross_entropy":
        return measure(lambda: F.cross_entropy(logits, ids, reduction="none"), LEAST, fresh=0)
    if peer == "torch_compile":
        score = compiled(plain_score, logits)
        return measure(lambda: score(logits, ids), LEAST, fresh=0)
    if peer.startswith("trl"):
        logprob, entropy = trl_functions()
        x, index = (logits, ids) if peer == "trl_flat" else batched(logits, ids)
        return measure(lambda: (logprob(x, index), entropy(x)), LEAST, fresh=0)
    exact = torch.log_softmax(logits[:4].double(), -1).gather(1, ids[:4, None]).squeeze(1)
    found = ak.token_logprobs(logits[:4], ids[:4])[0]
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=2e-6)
    measure(lambda: ak.token_logprobs(logits, ids, mask, entropy=True), LEAST, fresh=0)
