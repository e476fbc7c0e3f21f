"""LoRA on some linear layers of a model that is there only inside a context; outside, the model is what it was."""

import threading
from contextlib import contextmanager

import torch
from torch import nn

# Two contexts on one model at a time would put each other's layers back.
_ONE_AT_A_TIME = threading.RLock()


class _Switch(nn.Module):
    """Stands in for a layer: the adapted one in the thread that has put it there, the plain one in every other."""

    def __init__(self, plain: nn.Module, adapted: nn.Module):
        super().__init__()
        self.plain, self.adapted, self._thread = plain, adapted, threading.get_ident()

    def forward(self, *args, **kwargs):
        chosen = self.adapted if threading.get_ident() == self._thread else self.plain
        return chosen(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.plain, name)


class SideAdapter:
    """PEFT's LoRA layers around a model's own linear layers, put in their places by `with adapter.active():`.

    layers: {name in the model: PEFT's layer}. parameters: those of LoRA, by name.
    """

    def __init__(self, model, targets: tuple[str, ...], rank: int, alpha: int, dropout: float):
        """targets: last parts of module names. Raises ValueError if the model has no linear layer named so."""
        found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in targets}
        if not found:
            raise ValueError(
                f"PrefixScorer: {type(model).__name__} has no module named {' or '.join(targets)}: pass targets=,"
                " names of its query and value projections"
            )
        adapted = [name for name, module in found.items() if hasattr(module, "base_layer")]
        if adapted:
            raise ValueError(
                f"PrefixScorer: {adapted[0]} has a PEFT adapter already, which another one would change: merge it first"
                " (merge_and_unload), or pass other targets="
            )
        self._model = model
        self.layers = _lora_layers(found, targets, rank, alpha, dropout)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        pairs = ((f"{n}.{own}", p) for n, layer in self.layers.items() for own, p in layer.named_parameters())
        return {name: parameter for name, parameter in pairs if ".lora_" in name}

    def train(self, mode: bool = True) -> None:
        """Dropout on or off; the model's own layers keep their mode."""
        for layer in self.layers.values():
            for module in (m for n, m in layer.named_modules() if n.startswith("lora_")):
                module.training = mode

    @contextmanager
    def active(self):
        """The model computes with the adapter inside, in this thread."""
        with _ONE_AT_A_TIME:
            plain = {name: self._model.get_submodule(name) for name in self.layers}
            try:
                for name, layer in self.layers.items():
                    self._put(name, _Switch(plain[name], layer))
                yield
            finally:
                for name, layer in plain.items():
                    self._put(name, layer)

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        self._model.get_submodule(parent)._modules[own] = layer


def _lora_layers(found: dict, targets, rank: int, alpha: int, dropout: float) -> dict[str, nn.Module]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("adapt_kernels.PrefixScorer needs PEFT: pip install 'peft>=0.18'") from error
    # A tree of their own with the same names: injecting into the model would change it for every call.
    tree, trainable = nn.Module(), {p: p.requires_grad for layer in found.values() for p in layer.parameters()}
    for name, layer in found.items():
        *path, own = name.split(".")
        parent = tree
        for part in path:
            parent._modules.setdefault(part, nn.Module())
            parent = parent.get_submodule(part)
        parent._modules[own] = layer
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    inject_adapter_in_model(config, tree, "prefix_scorer")
    # PEFT freezes what it wraps, and the model may be in training.
    for parameter, own in trainable.items():
        parameter.requires_grad_(own)
    return {name: tree.get_submodule(name) for name in found}


def frozen_gradients(loss: torch.Tensor, parameters: list[nn.Parameter]) -> None:
    """Give the parameters their gradients; a model's own that require one get none."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
