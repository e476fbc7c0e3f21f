"""Kernels of other projects that score or differentiate rows of logits: each as a call, or the reason it cannot run.

Each takes (logits [N, V], ids, old, advantages) and returns a call without arguments. Those that differentiate write a
gradient of all the logits; losses they do not have are left out, so what they do is at most what ours does.
"""

from importlib import import_module

import torch


class NotHere(Exception):
    """A peer that cannot run here, and why."""


def _function(package, module, name, device):
    if device.type != "cuda":
        raise NotHere(f"{package} needs a GPU")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NotHere(f"{package} is not installed or has no {name}: {error}") from None


def _backward(loss, logits):
    def run():
        leaf = logits.detach().requires_grad_()
        loss(leaf).sum().backward()
        return leaf.grad

    return run


def trl_triton_score(logits, ids, old, advantages):
    """TRL's fused log-prob and entropy, forward."""
    score = _function("trl", "trl.kernels.logprob_entropy", "selective_log_softmax_and_entropy", logits.device)
    return lambda: score(logits, ids)


def flash_attn_score(logits, ids, old, advantages):
    """flash-attn's cross-entropy, forward: log-probs only."""
    loss = _function("flash-attn", "flash_attn.ops.triton.cross_entropy", "cross_entropy_loss", logits.device)
    return lambda: loss(logits, ids)


def quack_score(logits, ids, old, advantages):
    """quack's cross-entropy, forward: log-probs only."""
    loss = _function("quack-kernels", "quack.cross_entropy", "cross_entropy", logits.device)
    return lambda: loss(logits, ids, reduction="none")


def liger_loss(logits, ids, old, advantages):
    """Liger's GRPO loss: a row is a sequence of one token, as it takes one advantage a sequence."""
    grpo = _function("liger-kernel", "liger_kernel.transformers.grpo_loss", "triton_grpo_loss", logits.device)
    # It wants the logits of one position more than it scores.
    padded = torch.cat([logits, logits[-1:]]).unsqueeze(0)
    settings = {"temperature": 1.0, "beta": 0.0, "eps_low": 0.2, "eps_high": 0.28, "inplace": False}
    rows = old.unsqueeze(0), None, ids.unsqueeze(0), advantages[:1]
    return _backward(lambda x: grpo(x, *rows, **settings)[0], padded)


def flash_attn_loss(logits, ids, old, advantages):
    """flash-attn's cross-entropy with gradient."""
    loss = _function("flash-attn", "flash_attn.ops.triton.cross_entropy", "cross_entropy_loss", logits.device)
    return _backward(lambda x: loss(x, ids)[0], logits)


def quack_loss(logits, ids, old, advantages):
    """quack's cross-entropy with its gradient from the same read."""
    both = _function("quack-kernels", "quack.cross_entropy", "cross_entropy_fwd", logits.device)
    return lambda: both(logits, ids, return_dx=True)


def trl_triton_loss(logits, ids, old, advantages):
    """TRL's fused log-prob with TRL's clipped loss through autograd."""
    score = _function("trl", "trl.kernels.logprob_entropy", "selective_log_softmax_and_entropy", logits.device)

    def loss(x):
        ratio = (score(x, ids)[0] - old).exp()
        return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages).mean()

    return _backward(loss, logits)


SCORES = {"trl_triton": trl_triton_score, "flash_attn": flash_attn_score, "quack": quack_score}
LOSSES = {"liger": liger_loss, "trl_triton": trl_triton_loss, "flash_attn": flash_attn_loss, "quack": quack_loss}
