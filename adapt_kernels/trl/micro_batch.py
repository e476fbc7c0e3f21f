"""Forwards of a few rows: the policy head of their loss, what every token counts in it, and plain log-probs."""

import torch

from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.policy_head import LogprobHead, PolicyHead


def policy_head(
    args: ADaPTConfig, token_ids: tuple, gate: int, batch: dict, counts: dict, lm_head: dict, settings: dict
) -> PolicyHead:
    """The head for the rows of `batch`, as the trainer made them.

    token_ids: of the modes, whose decision is at completion position `gate`. counts: as `loss_weights` takes them.
    lm_head: `logit_settings` of the model. settings: arguments of `linear_policy_loss` beside the clips.
    """
    mask = batch["loss_mask"]
    loss_type = args.loss_type or args.method.loss_type
    weights = loss_weights(mask, gate, loss_type, args.method.mode_mean, args.degrpo_alpha, counts)
    margin_weights = args.margin_coef * weights[:, gate]
    weights[:, gate] *= args.mode_weight
    kinds = torch.full(mask.shape, args.kinds[1], device=mask.device)
    kinds[:, gate] = args.kinds[0]
    return PolicyHead(
        ids=batch["completion_ids"],
        old_logprobs=batch["old_logprobs"],
        advantages=batch["advantages"],
        mask=mask,
        kinds=kinds,
        weights=weights,
        ref_logprobs=batch.get("ref_per_token_logps"),
        gate=gate,
        mode_ids=torch.tensor(token_ids, device=mask.device) if args.margin_coef else None,
        margin_weights=margin_weights,
        lm_head=lm_head,
        settings={**args.clipping, **settings},
        kl_weights=batch.get("kl_weight"),
        kl_on_mode=args.method.kl_on_mode,
    )


@torch.no_grad()
def token_scores(
    model, input_ids, attention_mask, width: int, rows: int, temperature: float, lm_head: dict, entropy: bool = False
) -> torch.Tensor:
    """[B, width] float32 log-probs of the last `width` tokens, by the loss's forward and head, `rows` at a time.

    entropy: [B, width, 2], log-probs and entropies.
    """
    found = []
    for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
        head = LogprobHead(ids[:, -width:], mask[:, -width:] != 0, temperature, lm_head, entropy)
        found.append(model(input_ids=ids, attention_mask=mask, policy_head=head))
    return torch.cat(found)


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
