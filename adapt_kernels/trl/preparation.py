"""From the models as TRL loaded them to a policy that rolls out and is trained here, and its reference."""

import warnings

import torch

from adapt_kernels.hf.call.patch import patch
from adapt_kernels.modes import Modes
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.dropout import warn_of_randomness
from adapt_kernels.trl.generation_settings import warn_of_settings
from adapt_kernels.trl.head_check import check_head, logit_settings
from adapt_kernels.trl.policy_head import add_policy_head

_HALF_DRIFT, _DRIFT = 0.1, 2e-3  # mean |log ratio| that rounding does not make, in 16 and in 32 bits


def prepare(model, reference, modes: Modes, args: ADaPTConfig, stacklevel: int) -> tuple[dict, bool]:
    """Heads on policy and reference (or None), the policy patched; returns (`logit_settings`, whether training draws).

    Warns of what the training mode or the checkpoint's settings do. Raises ValueError for a head that is not served.
    """
    policy = model.get_base_model() if hasattr(model, "get_base_model") else model
    lm_head = logit_settings(policy.config, args.cast_lm_head_to_fp32)
    add_policy_head(policy, args.cast_lm_head_to_fp32)
    check_head(policy, lm_head)
    if reference is not None:
        add_policy_head(reference, args.cast_lm_head_to_fp32)
    elif args.beta and "ref" in getattr(model, "peft_config", ()):
        _complete_reference_adapter(model)
    patch(policy, modes)
    random = warn_of_randomness(model, args, stacklevel + 1)
    warn_of_settings(policy.generation_config, stacklevel + 1)
    return lm_head, random


def _complete_reference_adapter(model) -> None:
    # TRL copies a trained adapter to one called "ref" by names that go on behind its own; those of token rows do not.
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            copied = parameters.get(name.removesuffix("default") + "ref") if name.endswith(".default") else None
            if copied is not None:
                copied.copy_(parameter)


def warn_of_drift(drift: float, half: bool, stacklevel: int) -> None:
    """Before any update a ratio is 1: what else is missing between a rollout and its loss shows here, once."""
    if not drift <= (_HALF_DRIFT if half else _DRIFT):
        warnings.warn(
            f"importance ratios are not 1 before the first update (mean |log ratio| {drift:.3g}): the log-probs of the"
            " rollout are not those that the loss computes from the same tokens. Set old_logprobs='policy', and look at"
            " what the model does in generate alone or in training alone (dropout, positions, logits processors)",
            stacklevel=stacklevel + 1,
        )
