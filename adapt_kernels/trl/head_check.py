"""Whether the head that the loss computes is the model's own."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from trl.trainer.utils import maybe_gather_lm_head_ctx

from adapt_kernels.trl.policy_head import before

_TOKENS = 5
_LARGE = 100.0  # logits this large are bent by every softcap in use
_HEAD = "ADaPTTrainer computes softcap * tanh(scale * (W h + b) / softcap) of the last hidden states h only"


def logit_settings(config, float32: bool) -> dict:
    """What the model does to its logits, read from its config: "logit_scale", "softcap", "columns" (None = all).

    "float32" is passed on: whether the head computes in it, whatever the model's dtype.
    """
    text = config.get_text_config()
    named = [getattr(text, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    scale = next((value for value in named if value is not None), None)
    for name in ("logits_scaling", "logits_mup_width_multiplier"):
        divisor = getattr(text, name, None)
        if scale is None and divisor is not None:
            scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return {
        "logit_scale": 1.0 if scale is None else float(scale),
        "softcap": next((value for name in caps if (value := getattr(text, name, None)) is not None), None),
        "columns": getattr(text, "unpadded_vocab_size", None),
        "float32": float32,
    }


def check_head(model, lm_head: dict) -> None:
    """Raises ValueError unless the policy head of `model` would see the model's own logits, within rounding.

    A forward of a few tokens each way, without dropout; then once more with raw logits made so large, by a power of
    two, that every bend shows whatever the weights are. lm_head: `logit_settings` of the model.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # FSDP loads the weights on one rank, which checks
    ids = torch.arange(_TOKENS, device=model.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), maybe_gather_lm_head_ctx(*model.parameters()), restored_training(model):
        plain = model.eval()(**inputs).logits
        with _enlarged(model.get_output_embeddings()) as factors:
            large = model(**inputs).logits
        head = _Logits(ids[:, 1:], lm_head, [1.0, factors[0] if factors else 1.0])
        try:
            ours = model(**inputs, policy_head=head)
        except Exception as error:
            raise ValueError(f"the loss cannot take the place of {type(model).__name__}'s head: {error}") from error
    for own, found in zip((plain, large), ours, strict=True):
        _compare(own[:, :-1], found, model, lm_head)


def _compare(own, ours, model, lm_head: dict) -> None:
    name = type(model).__name__
    if own.shape != ours.shape:
        raise ValueError(f"the logits of {name} are {tuple(own.shape)}, those of its head {tuple(ours.shape)}: {_HEAD}")
    # A policy that is not finite itself is for the run to stop.
    own, ours = (x.double()[own.isfinite()] for x in (own, ours))
    if not own.numel():
        return
    difference, largest = (own - ours).abs().nan_to_num(torch.inf), own.abs().max()
    # Scale, tanh and cap round once each in the model's dtype; float32 products of other shapes differ as well.
    allowed = 4 * torch.finfo(model.dtype).eps * own.abs() + 1e-4 * largest
    if (difference > allowed).any():
        raise ValueError(
            f"the logits of {name} differ from those of its head by up to {difference.max():.3g}, and are {largest:.3g}"
            f" at most: {_HEAD}, with {lm_head['logit_scale']:g} as scale and {lm_head['softcap']} as softcap"
        )


@dataclass
class _Logits:
    """A policy head that gives its logits [len(factors), B, T, V], of raw ones `factors` times as large."""

    ids: torch.Tensor
    lm_head: dict
    factors: list[float]

    def __call__(self, hidden, weight, bias) -> torch.Tensor:
        hidden, head = before(hidden, self.ids, weight, bias, {**self.lm_head, "float32": True})
        found = []
        for factor in self.factors:
            larger = head._replace(bias=None if head.bias is None else head.bias * factor)
            logits = larger.project((hidden * factor).flatten(0, 1)) / larger.divisor(1.0)
            found.append(logits.reshape(*self.ids.shape, -1))
        return torch.stack(found)


@contextmanager
def _enlarged(embeddings):
    """Makes the raw logits of one forward about `_LARGE`; yields a list for the factor, empty without such logits."""
    factors: list[float] = []

    def enlarge(module, arguments, output):
        largest = output.nan_to_num(0.0, 0.0, 0.0).abs().max().item() or 1.0
        factors.append(2.0 ** math.floor(math.log2(_LARGE / largest)))
        return output * factors[-1]

    handle = embeddings.register_forward_hook(enlarge)
    try:
        yield factors
    finally:
        handle.remove()


@contextmanager
def restored_training(model):
    """Afterwards every module is in training or not, as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
