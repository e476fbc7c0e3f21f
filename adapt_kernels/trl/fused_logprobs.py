"""TRL's log-probs by our kernels: `with fused_logprobs(): trainer.train()`."""

import functools
import sys
from contextlib import contextmanager

import torch
import trl
import trl.trainer.utils as trl_functions
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS

from adapt_kernels.dispatch import choose_name
from adapt_kernels.native import kernels
from adapt_kernels.ops.lm_head import HeadGradients, LmHead
from adapt_kernels.ops.token_logprobs import token_logprobs

KNOWN_VERSIONS = ("1.16.0",)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_active = False


@contextmanager
def fused_logprobs():
    """Replaces, inside the `with`, what TRL computes log-probs and entropies with; restores it exactly after.

    - the function behind `fused_lm_head=True`, which GRPO, RLOO, KTO, DPO and SFT call: chunks of rows through the head
      and one read of their logits; the backward pass projects a chunk again and reads it once more. Positions without
      a label cost nothing, on the CPU too, where TRL scores all of them.
    - `selective_log_softmax` and `selective_log_softmax_and_entropy`, in every TRL module that has imported them. They
      return float32 whatever the logits are (TRL: the dtype of the logits).

    Served where `token_logprobs` has kernels of its own that can run: tensors on a CPU, and on CUDA (not yet run on a
    GPU). What they do not take (float64, several ids per row, other devices) goes to TRL's own function. A module that
    imports a function inside the `with` has TRL's own after it, and a reference that is kept elsewhere does what TRL's
    does. Raises RuntimeError for a TRL version this was not written for. Not reentrant, and one per process: TRL's
    modules are changed for everyone.
    """
    global _active
    if trl.__version__ not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"fused_logprobs() knows trl {', '.join(KNOWN_VERSIONS)}; got {trl.__version__}. "
            f"Install a known one (pip install trl=={KNOWN_VERSIONS[-1]}), or leave fused_logprobs() out"
        )
    if _active:
        raise RuntimeError("fused_logprobs() is active already")
    pairs = [(getattr(trl_functions, name), make(getattr(trl_functions, name))) for name, make in _SUBSTITUTES.items()]
    _active = True
    try:
        for name, (original, ours) in zip(_SUBSTITUTES, pairs, strict=True):
            _replace(original, ours, "trl" if name in _WHEREVER_IMPORTED else trl_functions.__name__)
        yield
    finally:
        _active = False
        for original, ours in pairs:
            _replace(ours, original)


def _replace(old, new, within: str = "") -> None:
    """Under any name, in every module that is imported by now, or those of the package or module `within`."""
    for key, module in list(sys.modules.items()):
        if f"{key}.".startswith(within and f"{within}."):
            for name in [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is old]:
                setattr(module, name, new)


def _selective(original):
    @functools.wraps(original)
    def selective_log_softmax(logits, index, temperature=1.0, row_mask=None):
        if not _served(logits, index):
            return original(logits, index, temperature, row_mask)
        return token_logprobs(logits, index, row_mask, temperature)[0]

    return selective_log_softmax


def _selective_with_entropy(original):
    @functools.wraps(original)
    def selective_log_softmax_and_entropy(logits, index, entropy_requires_grad=True, temperature=1.0, row_mask=None):
        if not _served(logits, index):
            return original(logits, index, entropy_requires_grad, temperature, row_mask)
        logprobs, entropy = token_logprobs(logits, index, row_mask, temperature, entropy=True)
        return logprobs, entropy if entropy_requires_grad or entropy is None else entropy.detach()

    return selective_log_softmax_and_entropy


def _compacting(original):
    # TRL asks this only to decide whether positions without a label are left out.
    def leaves_out(device):
        return original(device) or (_active and device.type in kernels.DEVICES)

    return leaves_out


def _served(logits, index=None) -> bool:
    if not _active or logits.device.type not in kernels.DEVICES or logits.dtype not in _DTYPES:
        return False
    if choose_name("token_logprobs", "auto", logits) != "native":
        return False
    return index is None or (
        logits.ndim in (2, 3) and index.shape == logits.shape[:-1] and (logits.shape[-1] == 1 or logits.stride(-1) == 1)
    )


class _ChunkedHead:
    """In the place of TRL's autograd function; takes the arguments of its `apply`."""

    def __init__(self, original):
        self.original = original

    def apply(
        self,
        hidden,
        weight,
        bias,
        targets,
        temperature,
        chunk_size,
        softcap=None,
        logit_scale=1.0,
        outputs=OPTIONAL_OUTPUTS,
    ):
        if not _served(hidden) or not logit_scale > 0:
            return self.original.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs
            )
        return _ChunkedLogprobs.apply(hidden, weight, bias, targets, temperature, softcap, logit_scale, outputs)


class _ChunkedLogprobs(torch.autograd.Function):
    """(log-probs, entropy, log sum p^2, mean logit, is top 1) of each row; what is not asked for is None."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, softcap, logit_scale, outputs):
        ctx.set_materialize_grads(False)
        device = hidden.device.type
        enabled = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if enabled else hidden.dtype
        ctx.head = softcap, logit_scale
        ctx.temperature = temperature
        head = _head(weight, bias, ctx)
        chunks = head.chunks(torch.arange(len(hidden), device=hidden.device), None)
        parts = [_score(head, hidden[rows], targets[rows], ctx, outputs) for rows in chunks]
        *found, statistics = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, targets, statistics)
        ctx.mark_non_differentiable(*(x for x in found[2:] if x is not None))
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, logprobs_grad, entropy_grad, *_):
        hidden, weight, bias, targets, statistics = ctx.saved_tensors
        head = _head(weight, bias, ctx)
        gradients = HeadGradients(hidden, head, ctx.needs_input_grad[:3])
        slope, bend = (
            hidden.new_zeros(len(hidden), dtype=torch.float64) if grad is None else grad.double()
            for grad in (logprobs_grad, entropy_grad)
        )
        active = ((slope != 0) | (bend != 0)).nonzero().squeeze(1)
        for rows in head.chunks(active, None) if len(active) else ():
            states = hidden[rows].to(ctx.dtype)
            logits = head.project(states)
            gradient = torch.ops.adapt_kernels.logit_gradient(
                logits.unsqueeze(1),
                targets[rows],
                None,
                head.divisor(ctx.temperature),
                None,
                statistics[rows],
                slope[rows],
                bend[rows],
            ).squeeze(1)
            gradients.add(rows, states, head.pull_back(gradient, logits, ctx.dtype))
        found = [
            None if gradient is None else gradient.to(given.dtype)
            for gradient, given in zip(gradients.results(), (hidden, weight, bias), strict=True)
        ]
        return *found, None, None, None, None, None


def _head(weight, bias, ctx) -> LmHead:
    return LmHead(weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype), *ctx.head)


def _score(head: LmHead, hidden, targets, ctx, outputs):
    """One chunk's five outputs and its rows' statistics."""
    logits = head.project(hidden.to(ctx.dtype))
    divisor = head.divisor(ctx.temperature)
    rows = logits.unsqueeze(1), targets, None
    logprobs, entropy, statistics = torch.ops.adapt_kernels.token_logprobs(*rows, divisor, None)
    squares = mean = top = None
    if "log_sum_sq_probs" in outputs:  # p^2 is the distribution at half the temperature, up to its mass
        halved = torch.ops.adapt_kernels.token_logprobs(*rows, divisor / 2, None)[2]
        squares = (halved[:, 1].log() - 2 * statistics[:, 1].log()).float()
    if "mean_logits" in outputs:
        mean = logits.mean(-1, dtype=torch.float32) / divisor
    if "is_top1" in outputs:
        top = logits.argmax(-1) == targets
    return logprobs, entropy if "entropy" in outputs else None, squares, mean, top, statistics


# What is replaced in TRL's functions, and what makes our form of it from TRL's.
_SUBSTITUTES = {
    "_ChunkedLogProbFunction": _ChunkedHead,
    "_use_triton": _compacting,
    "selective_log_softmax": _selective,
    "selective_log_softmax_and_entropy": _selective_with_entropy,
}
# The others mean something else in the modules that TRL's functions have them from.
_WHEREVER_IMPORTED = ("selective_log_softmax", "selective_log_softmax_and_entropy")
