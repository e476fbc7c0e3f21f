"""mode_sample: mode-token bias, temperature, top-k, top-p, min-p and sampling in one op."""

import torch

from adapt_kernels.ops.mode_sample.arguments import prepare
from adapt_kernels.ops.mode_sample.classes import class_edited
from adapt_kernels.ops.mode_sample.gate import (
    biased_logits,
    chances,
    gated_logits,
    mode_logits,
    mode_probs,
    selected_modes,
)
from adapt_kernels.ops.mode_sample.result import FLAG_EMPTY, FLAG_INF, FLAG_NAN, ModeSample
from adapt_kernels.ops.mode_sample.torch_op import call

__all__ = [
    "FLAG_EMPTY",
    "FLAG_INF",
    "FLAG_NAN",
    "ModeSample",
    "biased_logits",
    "chances",
    "class_edited",
    "gated_logits",
    "mode_logits",
    "mode_probs",
    "mode_sample",
    "selected_modes",
]


@torch.no_grad()
def mode_sample(
    logits,
    modes=None,
    at_mode=None,
    mode_bias=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    seeds=None,
    step=0,
    only_modes=True,
    backend="auto",
    *,
    fast_prob=None,
    forced_tokens=None,
    token_classes=None,
    class_scale=None,
    class_bias=None,
) -> ModeSample:
    """Draw one token per row; where a row stands at its mode token, decide the mode with it.

        y = logits * class_scale[class] + class_bias[class]                          (class of the id, if token_classes)
        y[at_mode, mode ids] += bias; y[at_mode, other ids] = -inf   (the latter if only_modes)
        y = y / temperature
        kept = top_k(y), then top_p of what is left, then min_p                 (not on rows restricted to modes)
        token ~ softmax(y[kept])

    A "row argument" is a scalar or a tensor (or list) of the leading shape of `logits`; for [B, T, V] also [B].

    Args:
        logits: [N, V] or [B, T, V], float32, bfloat16 or float16 (the reference backend also float64), any device;
            any row stride, last dimension contiguous. Read only. NaN counts as -inf; +inf wins.
        modes: `Modes`, or a sequence of token ids (None = any other token), or None. Multi-token modes are decided on
            their first differing id.
        at_mode: row argument, bool: the rows whose token selects the mode. None = none. Needs `modes`.
        mode_bias: logit units, added to mode ids of the `at_mode` rows: row argument for mode 0, a [..., M] tensor,
            or {name: row argument}. May be +-inf, not NaN.
        temperature: row argument >= 0. 0 = greedy: the lowest-id argmax, kept = 1, logprobs = 0.
        top_k: row argument, int; <= 0 = off. Keeps every token tied with the k-th largest.
        top_p: row argument in [0, 1]. Keeps a token iff the mass strictly above its value, among what top_k left, is
            below p; at least one token. Equal logits are kept together (Hugging Face cuts them by sort order).
        min_p: row argument in [0, 1]. Keeps tokens of at least min_p times the largest probability.
        seeds: int s (row i uses `row_seed(s, i)`), or int64 per row, or None: one seed from torch's default CPU
            generator. Same logits, seed and step give the same token in any batch and any slot.
        step: row argument, int: position in the random stream; advance it by one per drawn token.
        only_modes: restrict `at_mode` rows to the modes: P = softmax((logits + bias) / T) over them, no filters.
        backend: a name of `adapt_kernels.backends()`, which raises if it cannot run, or "auto": triton on CUDA, native
            on CPU, and reference, with one warning, where that cannot run.
        fast_prob: row argument in (0, 1); NaN = none for that row. P(mode 0) of restricted rows is exactly this at any
            T, the other modes keep their proportions (at T = 1 where T = 0), and the row is drawn even at T = 0.
        forced_tokens: row argument, int: a token id to score instead of drawing, < 0 = draw.
        token_classes: uint8 [V or less]: the class of each token id; ids beyond are of class 0.
            None = no edits by class. A ban or bias of many ids so costs no pass of its own on the native backend, which
            touches the ids of classes other than 0 only, nor on triton, which edits the logits as it reads them.
        class_scale, class_bias: [N, E] float32, one column per class: what the logits of a class are multiplied by
            (default 1), then what is added (default 0; -inf = never drawn). Every other field and argument sees the
            logits so edited, as if given so; only FLAG_NAN speaks of them as they came.

    Returns ModeSample; every field has the leading shape of `logits` and its device:
        tokens int64 · modes int8, the mode selected (-1: no mode, or not `at_mode`) · logprobs, of the token after all
        processing · raw_logprobs, at T=1, unbiased, whole vocabulary · tempered_logprobs, after bias and T, before
        filters, over the modes where restricted · mode_probs [..., M], the model's own at T=1, unbiased, renormalised
        over the modes (0 where all are -inf) · kept int32, tokens that could be drawn · flags int32, FLAG_NAN,
        FLAG_EMPTY (all -inf: lowest allowed id, kept 0, logprobs 0, raw and tempered -inf), FLAG_INF.
        Log-probs and mode_probs are float32 (float64 for float64 logits) and never NaN.

    Randomness: `adapt_kernels.philox_reference` is the stream. Host syncs: the reference backend syncs on CUDA
    devices; values of row arguments are checked only when they are on the host. B = 0 works.

    Raises ValueError or TypeError, before anything is drawn, naming the argument, what was given and what is allowed;
    RuntimeError if an explicit backend cannot run, saying what is missing and how to get it.
    """
    rows = prepare(
        logits,
        modes,
        mode_bias,
        seeds,
        only_modes,
        (token_classes, class_scale, class_bias),
        at_mode=False if at_mode is None else at_mode,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        step=step,
        fast_prob=float("nan") if fast_prob is None else fast_prob,
        forced_tokens=-1 if forced_tokens is None else forced_tokens,
    )
    sample = call(rows, backend)
    return sample if logits.ndim == 2 else sample.reshape(logits.shape[:-1])
