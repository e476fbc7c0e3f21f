"""The trainer's loss as a head of the model: hidden states in, `linear_policy_loss` and the margin penalty out."""

import functools
import types
from dataclasses import dataclass

import torch

from adapt_kernels.ops.linear_policy_loss import linear_policy_loss


def add_policy_head(model) -> None:
    """Make `model(..., policy_head=head)` return `head(hidden states, weight, bias)`; other calls are unchanged.

    The head runs in the forward of the output embeddings, inside the model's: there wrappers (DDP, FSDP) have their
    weights ready and see them used. It is passed as an object because wrappers cast and copy tensors among arguments.
    """
    output_embeddings = model.get_output_embeddings()
    model_forward, projection = model.forward, output_embeddings.forward

    @functools.wraps(type(model).forward)
    def forward_to_head(self, *args, policy_head=None, **kwargs):
        if policy_head is None:
            return model_forward(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes None
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return self.get_output_embeddings()(hidden, policy_head=policy_head)

    def project_or_head(self, hidden, policy_head=None):
        return projection(hidden) if policy_head is None else policy_head(hidden, self.weight, self.bias)

    model.forward = types.MethodType(forward_to_head, model)
    output_embeddings.forward = types.MethodType(project_or_head, output_embeddings)


@dataclass
class PolicyHead:
    """Loss of one micro-batch of B rows with T completion tokens; row arguments are [B, T] as `policy_loss` has them.

    gate: position of the mode token in the completion. mode_ids: ids of the modes, [M]. margin_weights: [B], c times
    the weight of each row's penalty. lm_head: `logit_settings` of the model.
    """

    ids: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    kinds: torch.Tensor
    weights: torch.Tensor
    ref_logprobs: torch.Tensor | None
    gate: int
    mode_ids: torch.Tensor | None
    margin_weights: torch.Tensor
    lm_head: dict
    settings: dict

    def __call__(self, hidden, weight, bias) -> dict:
        """{"loss": scalar, "logprobs", "entropy", "ratio", "clipped": [B, T]} from the hidden states [B, P + T, D]."""
        width = self.ids.shape[1]
        dtype = _compute_dtype(hidden, self.lm_head["float32"])
        hidden, weight = hidden[:, -width - 1 : -1].to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        logit_scale, softcap = self.lm_head["logit_scale"], self.lm_head["softcap"]
        with torch.autocast(hidden.device.type, enabled=False):
            out = linear_policy_loss(
                hidden,
                weight,
                self.ids,
                self.old_logprobs,
                self.advantages,
                mask=self.mask,
                kinds=self.kinds,
                weights=self.weights,
                ref_logprobs=self.ref_logprobs,
                bias=bias,
                softcap=softcap,
                logit_scale=logit_scale,
                **self.settings,
            )
            loss = out.loss
            if self.mode_ids is not None:
                logits = torch.nn.functional.linear(
                    hidden[:, self.gate], weight[self.mode_ids], None if bias is None else bias[self.mode_ids]
                )
                logits = logits.to(out.loss.dtype) * logit_scale
                logits = softcap * torch.tanh(logits / softcap) if softcap else logits
                loss = loss + (self.margin_weights.to(logits.dtype) * mode_spread(logits)).sum()
        return {"loss": loss, **{name: getattr(out, name) for name in ("logprobs", "entropy", "ratio", "clipped")}}


def mode_spread(logits: torch.Tensor) -> torch.Tensor:
    """[B] from the modes' logits [B, M]: 2 sum_m (logit_m - mean)^2, the squared difference where there are two."""
    return 2 * (logits - logits.mean(-1, keepdim=True)).square().sum(-1)


def logit_settings(config, float32: bool) -> dict:
    """What the model does to its logits, read from its config as TRL reads it; `float32`: whatever its dtype."""
    text = config.get_text_config()
    named = [getattr(text, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    scale = next((value for value in named if value is not None), None)
    divisor = getattr(text, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    softcap = getattr(text, "final_logit_softcapping", None)
    return {"logit_scale": 1.0 if scale is None else float(scale), "softcap": softcap, "float32": float32}


def loss_weights(mask, gate: int, loss_type: str, mode_mean: str, alpha: float, batch: dict) -> torch.Tensor:
    """[B, T] normaliser of every token: sum(weights * term) over ranks' mean and accumulated batches is the loss.

    mask [B, T] bool. batch: "window_tokens" and "window_response", this rank's share of the tokens (mode tokens
    included or not) of an optimizer step, "accumulation", its number of batches, and "max_length".
    """
    rows, accumulation = mask.shape[0], batch["accumulation"]
    apart = mode_mean == "sequences"
    counted = mask.clone()
    if apart:
        counted[:, gate] = False
    if loss_type == "dapo":
        divisor = batch["window_response" if apart else "window_tokens"].clamp(min=1).to(mask.device).expand(rows, 1)
    elif loss_type == "bnpo":
        divisor = (counted.sum().clamp(min=1) * accumulation).expand(rows, 1)
    elif loss_type == "dr_grpo":
        divisor = torch.full((rows, 1), rows * batch["max_length"] * accumulation, device=mask.device)
    else:
        divisor = counted.sum(1, keepdim=True).clamp(min=1) * rows * accumulation
    weights = (1 / divisor.double()).expand(mask.shape).clone()
    if apart:
        weights[:, gate] = alpha / (rows * accumulation)
    return weights


def _compute_dtype(hidden, float32: bool) -> torch.dtype:
    if float32:
        return torch.float32
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
