"""What the trainer logs about modes, and about the clipped loss."""

import torch

from adapt_kernels.modes import Modes


def mode_metrics(modes: Modes, chosen, mode_probs, correct, lengths) -> dict[str, float]:
    """Metrics of N rollouts of all ranks; NaN, which TRL leaves out, for a mode that none of them is in.

    chosen [N] int64, mode_probs [N, M], correct [N] (0 or 1, NaN = not graded), lengths [N].
    """
    entropy = torch.special.entr(mode_probs.double()).sum(-1)
    found = {"modes/entropy": entropy.mean().item()}
    for index, name in enumerate(modes.names):
        own = chosen == index
        found[f"modes/prob_{name}"] = mode_probs[:, index].double().mean().item()
        found[f"modes/share_{name}"] = own.double().mean().item()
        found[f"accuracy/{name}"] = torch.nanmean(correct[own].double()).item()
        found[f"length/{name}"] = lengths[own].double().mean().item()
    return found


def log_rows(logs: dict, modes: Modes, chosen, advantages) -> None:
    """Into TRL's table of completions: the response's advantage in the place of its own, and two columns.

    logs: TRL's, filled by now. chosen [N] and advantages, of modes and of responses, [N] each, of all ranks.
    """
    logged = logs["advantages"]
    for _ in range(min(len(logged), len(chosen))):
        logged.pop()
    logged.extend(advantages[1].tolist())
    logs["extra"]["mode"].extend(modes.names[mode] for mode in chosen.tolist())
    logs["extra"]["mode_advantage"].extend(advantages[0].tolist())


NOT_FINITE = ("log-probs of the policy", "the loss")  # what the last two of `loss_sums` count


def loss_sums(out: dict, mask, gate: int, ref_logprobs) -> torch.Tensor:
    """[10] float64 sums over this rank's tokens, for `loss_metrics` after adding up the ranks'."""
    logprobs, entropy, ratio, clipped = (out[name].detach() for name in ("logprobs", "entropy", "ratio", "clipped"))
    at_mode = mask[:, gate]
    delta = torch.zeros_like(logprobs) if ref_logprobs is None else (ref_logprobs - logprobs)
    kl = torch.where(mask, delta.exp() - delta - 1, 0.0)
    sums = (
        mask.sum(),
        entropy.sum(),
        (clipped & mask).sum(),
        kl.sum(),
        at_mode.sum(),
        torch.where(at_mode, ratio[:, gate], 0.0).sum(),
        (clipped[:, gate] & at_mode).sum(),
        torch.where(mask, ratio, 1.0).log().abs().index_fill(1, torch.tensor(gate, device=mask.device), 0.0).sum(),
        (mask & ~logprobs.isfinite()).sum(),
        (~out["loss"].detach().isfinite()).sum(),
    )
    return torch.stack([value.double() for value in sums])


def loss_metrics(sums: torch.Tensor, with_kl: bool) -> dict[str, float]:
    """Means over the tokens of all ranks, from their summed `loss_sums`."""
    tokens, entropy, clipped, kl, at_mode, ratio, mode_clipped = sums[:7].tolist()
    found = {"entropy": entropy / max(tokens, 1), "clip_ratio/region_mean": clipped / max(tokens, 1)}
    if at_mode:
        found |= {"modes/ratio": ratio / at_mode, "modes/clip_ratio": mode_clipped / at_mode}
    return found | ({"kl": kl / max(tokens, 1)} if with_kl else {})


def response_drift(sums: torch.Tensor) -> float:
    """Mean |log ratio| of the response tokens, from `loss_sums`: rounding as long as the policy has not moved."""
    return (sums[7] / (sums[0] - sums[4]).clamp(min=1)).item()
