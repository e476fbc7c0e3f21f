"""token_logprobs: the log-prob of one given token per row, and the entropy of the row, in one read of the logits."""

import torch

from adapt_kernels.dispatch import choose_name
from adapt_kernels.ops.token_logprobs import native, reference
from adapt_kernels.ops.token_logprobs.reference import exact_logprobs
from adapt_kernels.ops.token_logprobs.vocab_parallel import sharded_logprobs, vocab_offset
from adapt_kernels.ops.token_rows import check_logits, token_rows

__all__ = ["exact_logprobs", "token_logprobs", "vocab_offset", "vocab_parallel_logprobs"]

_BACKENDS = {"reference": reference, "native": native}


def token_logprobs(
    logits, ids, mask=None, temperature=1.0, entropy=False, backend="auto", *, process_group=None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob of token `ids[i]` in row i, and the row's entropy. Differentiable in the logits, once.

        y = logits / temperature
        logprobs = y[ids] - logsumexp(y);  entropy = -sum softmax(y) log_softmax(y);  both 0 where the mask is false

    Args:
        logits: [N, V] or [B, T, V], float32, bfloat16 or float16 (the reference backend also float64), any device;
            any row stride, last dimension contiguous. Never copied or converted; masked rows are not read.
        ids: integers in the leading shape of `logits`, in [0, V) where the mask is true, anything elsewhere (-100).
        mask: bool or 0/1 in the leading shape; None = every row.
        temperature: a number above 0, or one per row (leading shape; for [B, T, V] also [B]).
        entropy: also return the entropy, in nats; it costs no further read.
        backend: a name of `adapt_kernels.backends()`, which raises if it cannot run, or "auto": native where it can
            run, else reference with one warning. native is C++ on a CPU, CUDA on CUDA.
        process_group: the vocabulary is split over its processes in the order of their ranks: `logits` are this
            process's columns, `ids` are ids of the whole vocabulary, the results are whole on every process. Four
            numbers per row are exchanged. Every process of the group must make the call.

    Returns (logprobs, entropy or None), in the leading shape: float32 (float64 for float64 logits), whatever the dtype
    of the logits. A token at -inf has log-prob -inf. A row without a distribution (NaN, +inf, or nothing but -inf) is
    NaN, and so is its gradient; other rows never see it. A row's result does not depend on the batch.

    The backward pass reads each row once more and writes its gradient, in the dtype of the logits; a row whose incoming
    gradients are 0 is not read. No randomness, no host sync (values are checked where they are on the host already).
    Raises ValueError or TypeError naming the argument; RuntimeError if an explicit backend cannot run.
    """
    chosen = _BACKENDS[choose_name("token_logprobs", backend, logits)]
    leading = logits.shape[:-1] if torch.is_tensor(logits) else ()
    if process_group is None:
        logprobs, entropies = chosen.token_logprobs(token_rows(logits, ids, mask, temperature), bool(entropy))
    else:
        check_logits(logits)
        offset, vocab_size = vocab_offset(logits, process_group)
        rows = token_rows(logits, ids, mask, temperature, vocab_size)
        logprobs, entropies = (x.to(rows.result_dtype) for x in sharded_logprobs(rows, offset, process_group, chosen))
    return logprobs.reshape(leading), entropies.reshape(leading) if entropy else None


def vocab_parallel_logprobs(rows, offset, process_group, backend) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies), [N] float64, of this shard's rows by the backend of that name."""
    return sharded_logprobs(rows, offset, process_group, _BACKENDS[backend])
