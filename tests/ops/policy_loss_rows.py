"""Rows that the tests of policy_loss share."""

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows_of(count, vocab_size, seed, dtype=torch.float32):
    """Logits, ids and old log-probs at ratios on both sides of every clip."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(count, vocab_size, generator=generator)).to(dtype)
    ids = torch.randint(0, vocab_size, (count,), generator=generator)
    exact = torch.log_softmax(logits.double(), 1).gather(1, ids[:, None]).squeeze(1)
    gaps = torch.tensor([0.0, 0.1, -0.15, 0.5, -0.6, 1.4, -2.0, 19.5, -19.5, 100.0, -100.0])
    return logits, ids, (exact - gaps[torch.arange(count) % len(gaps)]).float()
