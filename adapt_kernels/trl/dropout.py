"""Randomness of the training mode, which makes the loss score another policy than the one that rolled out."""

import warnings

import torch

# Modeling files keep rates in modules of their own, or as numbers that they pass to functions.
_WORDS = ("drop", "jitter")


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


def warn_of(model: torch.nn.Module, neftune_noise_alpha: float | None, stacklevel: int) -> bool:
    """One warning where the model is random in training; whether it is."""
    found = rates(model)
    if neftune_noise_alpha:
        found["neftune_noise_alpha"] = neftune_noise_alpha
    if found:
        listed = ", ".join(f"{name}={rate:g}" for name, rate in list(found.items())[:4])
        warnings.warn(
            f"dropout is on in training ({listed}), but not when completions are drawn: importance ratios then stray"
            " from 1 before any update. Set disable_dropout=True in ADaPTConfig"
            + (", and leave neftune_noise_alpha out" if neftune_noise_alpha else ""),
            stacklevel=stacklevel + 1,
        )
    return bool(found)


def _settings(module: torch.nn.Module):
    for name, value in vars(module).items():
        if any(word in name for word in _WORDS) and type(value) is float and value > 0:
            yield name, value
