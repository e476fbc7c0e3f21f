"""The training of a prefix scorer: soft cross-entropy, a progress bar, runs that go on after an interruption."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.nn.functional import log_softmax

from adapt_kernels.hf.scorers.side_adapter import frozen_gradients

_STATE, _PROGRESS = "fit.safetensors", "fit.json"


@dataclass(frozen=True)
class Fit:
    """Settings of `PrefixScorer.fit`.

    epochs, batch_size, learning_rate (constant), weight_decay: of AdamW. validation: (prefixes, labels); the epoch
    with the least mean squared error on it is kept, without it the last one. seed: of the order and of dropout. folder:
    where each epoch's state goes, and from which a run of the same data and settings goes on. progress: show a bar.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    validation: tuple | None = None
    seed: int = 0
    folder: str | os.PathLike | None = None
    progress: bool = True

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"fit: {name} must be an integer of at least 1; got {value!r}")
        if not isinstance(self.learning_rate, Real) or not self.learning_rate > 0:
            raise ValueError(f"fit: learning_rate must be a number > 0; got {self.learning_rate!r}")


def soft_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over n of -(1 - p) log softmax[0] - p log softmax[1]; logits [n, 2], labels p [n] in [0, 1]."""
    logp = log_softmax(logits.float(), -1)
    return -(labels * logp[:, 1] + (1 - labels) * logp[:, 0]).mean()


def fit_scorer(scorer, prefixes: list[torch.Tensor], labels, settings: Fit) -> list[dict]:
    """See `PrefixScorer.fit`. The model's mode and torch's generators are put back."""
    from tqdm.auto import tqdm

    labels = _checked_labels(labels, len(prefixes), "labels")
    if settings.validation is not None:
        _checked_labels(settings.validation[1], len(settings.validation[0]), "validation labels")
    run = _Run(scorer, settings, _digest(prefixes, labels, settings, scorer.settings))
    modes = {module: module.training for module in scorer.model.modules()}
    scorer.model.eval()
    batches = math.ceil(len(prefixes) / settings.batch_size)
    shown = {"total": settings.epochs * batches, "initial": run.epoch * batches, "desc": "PrefixScorer"}
    try:
        with tqdm(**shown, unit="batch", disable=not settings.progress) as bar:
            while run.epoch < settings.epochs:
                told = run.one_epoch(prefixes, labels, bar.update)
                bar.set_postfix({name: f"{value:.4f}" for name, value in told.items() if value is not None})
    finally:
        scorer.adapter.train(False)
        for module, mode in modes.items():
            module.training = mode
    run.keep_best()
    return run.history


class _Run:
    """A fit under way: `epoch` of them are done. digest: of its data and settings."""

    def __init__(self, scorer, settings: Fit, digest: str):
        self.scorer, self.settings, self.digest = scorer, settings, digest
        self.names, self.parameters = zip(*scorer.parameters.items(), strict=True)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch = 0
        self.history: list[dict] = []
        self.best: dict[str, torch.Tensor] = {}  # empty before the first epoch
        self._folder = None if settings.folder is None else Path(settings.folder)
        if self._folder is not None and (self._folder / _PROGRESS).exists():
            self._resume(self._folder)

    def one_epoch(self, prefixes, labels, step) -> dict:
        """Returns {"loss", "validation"}; step() is called after each batch."""
        settings, losses = self.settings, []
        self.scorer.adapter.train()
        # Each epoch by itself: one that is resumed draws what it would have drawn.
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(prefixes)).split(settings.batch_size)
            for chosen in order:
                # Caches write recurrent states in place, position after position.
                with allow_mutation_on_saved_tensors():
                    logits = self.scorer.logits([prefixes[i] for i in chosen.tolist()])
                    loss = soft_cross_entropy(logits, labels[chosen].to(logits.device))
                    frozen_gradients(loss, list(self.parameters))
                self.optimizer.step()
                losses.append(loss.item() * len(chosen))
                step()
        self.scorer.adapter.train(False)
        mean, error = sum(losses) / len(prefixes), self._validation()
        if not math.isfinite(mean):
            raise ValueError(f"fit: the loss of epoch {self.epoch} is {mean}: lower learning_rate")
        self.epoch += 1
        told = {"loss": mean, "validation": error}
        self.history.append({"epoch": self.epoch, **told})
        self._note_best(error)
        if self._folder is not None:
            self._save(self._folder)
        return told

    def _validation(self) -> float | None:
        if self.settings.validation is None:
            return None
        prefixes, labels = self.settings.validation
        scores = self.scorer.score(prefixes, self.settings.batch_size)
        return (scores.double() - torch.as_tensor(labels, dtype=torch.float64)).square().mean().item()

    def _note_best(self, error: float | None) -> None:
        earlier = [each["validation"] for each in self.history[:-1]]
        if error is None or not earlier or error < min(earlier):
            self.best = {n: p.detach().clone() for n, p in zip(self.names, self.parameters, strict=True)}

    def keep_best(self) -> None:
        if self.best:
            self.scorer.load(self.best)

    def _save(self, folder: Path) -> None:
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            tensors[f"now.{name}"] = parameter.detach()
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{_STATE}.part"
        # Cloned: parameters may share memory, which safetensors refuses.
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, part)
        stem = f"{self.epoch}.{_STATE}"
        os.replace(part, folder / stem)
        told = {"digest": self.digest, "state": stem, "history": self.history}
        part.write_text(json.dumps(told), "utf-8")
        os.replace(part, folder / _PROGRESS)
        for old in folder.glob(f"*.{_STATE}"):
            if old.name != stem:
                old.unlink()

    @torch.no_grad()
    def _resume(self, folder: Path) -> None:
        told = json.loads((folder / _PROGRESS).read_text("utf-8"))
        if told["digest"] != self.digest:
            raise ValueError(
                f"fit: {folder} holds a run of other data or settings: pass another folder, or delete that one"
            )
        tensors = load_file(folder / told["state"])
        self.history, self.epoch = told["history"], len(told["history"])
        self.best = {name: tensors[f"best.{name}"] for name in self.names}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            parameter.copy_(tensors[f"now.{name}"])
            state = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in state.items()
            }


def _checked_labels(labels, count: int, what: str) -> torch.Tensor:
    values = torch.as_tensor(labels, dtype=torch.float32).cpu()
    if values.shape != (count,) or not count:
        raise ValueError(f"fit: {what} must be one number per prefix ({count}, at least 1); got {tuple(values.shape)}")
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(f"fit: {what} must lie in [0, 1]; got {values[outside][0].item()}")
    return values


def _digest(prefixes, labels, settings: Fit, scorer: dict) -> str:
    """Of what a resumed run must share with the interrupted one; epochs may grow."""
    digest = hashlib.sha256(repr((sorted(scorer.items()), settings.batch_size, settings.learning_rate)).encode())
    digest.update(repr((settings.weight_decay, settings.seed, settings.validation is None)).encode())
    for tensor in (*prefixes, labels):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
