"""Randomness of the training mode, which makes the loss score another policy than the one that rolled out."""

import warnings
from typing import Any

import torch
from trl.trainer.utils import maybe_gather_lm_head_ctx

from adapt_kernels.hf.kv.random_draws import drawn_from, random_states
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.head_check import restored_training

# Modeling files keep rates in modules of their own, or as numbers that they pass to functions.
_WORDS = ("drop", "jitter")
_SHOWN = 4


def warn_of_randomness(model: torch.nn.Module, args: ADaPTConfig, stacklevel: int) -> bool:
    """One warning where a forward in training draws random numbers; whether it does. disable_dropout goes first."""
    if args.disable_dropout:
        silence(model)
    random = _draws_in_training(model)
    if not random and not args.neftune_noise_alpha:
        return False
    found = rates(model) if random else {}
    listed = [f"{name}={rate:g}" for name, rate in list(found.items())[:_SHOWN]]
    remedies = []
    if args.neftune_noise_alpha:
        listed.append(f"neftune_noise_alpha={args.neftune_noise_alpha:g}")
        remedies.append("leave neftune_noise_alpha out")
    if random:
        off = "set disable_dropout=True in ADaPTConfig"
        remedies.append("take it out of the model: disable_dropout does not reach it" if args.disable_dropout else off)
    warnings.warn(
        f"dropout or other noise is on in training ({', '.join(listed) or 'in the code of the model'}), but not when"
        f" completions are drawn: importance ratios then stray from 1 before any update. To turn it off,"
        f" {' and '.join(remedies)}",
        stacklevel=stacklevel + 1,
    )
    return True


def rates(model: torch.nn.Module) -> dict[str, float]:
    """Rates above 0, by the name of the module or of its setting; of modules that repeat, the first one's name."""
    found: dict[tuple, tuple[str, float]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p:
            found.setdefault((path.rpartition(".")[2], module.p), (path, module.p))
        for name, value in _settings(module):
            found.setdefault((name, value), (f"{path}.{name}".lstrip("."), value))
    return dict(found.values())


def silence(model: torch.nn.Module) -> None:
    """Sets every rate to 0, also those that TRL's disable_dropout leaves."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, _ in list(_settings(module)):
            setattr(module, name, 0.0)


def _settings(module: torch.nn.Module):
    for name, value in vars(module).items():
        if any(word in name for word in _WORDS) and type(value) is float and value > 0:
            yield name, value


def _draws_in_training(model: Any) -> bool:
    """By a forward of two tokens in training and one at rest; the random state is put back."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return bool(rates(model))  # FSDP loads the weights on one rank
    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), maybe_gather_lm_head_ctx(*model.parameters()), restored_training(model):
        before = random_states(model.device)
        noisy = model.train()(**inputs).logits
        drawn = drawn_from(before, model.device)
        # Some models draw for layers to drop whatever the rate is.
        return drawn and (bool(rates(model)) or not torch.equal(noisy, model.eval()(**inputs).logits))
