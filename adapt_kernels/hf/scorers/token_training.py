"""How a `TokenScorer` is trained: DynTS's target, its loss, and a run that can be resumed."""

import json
import math
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

_STATE = "training.safetensors"
_PEAK = (4.0, 5.0)  # scaled labels that weigh more
_PEAK_WEIGHT = 5.0
# Monotonic, so that only the loss sees them: the ranking is the same.
SCALES = {"power": lambda x: 10 * x**0.3 / 0.3, "linear": lambda x: 1e4 * x}


class Example(NamedTuple):
    """A correct sample: ids int64 [T], its thought [start, end) without the tags, its answer after the closing tag."""

    ids: torch.Tensor
    start: int
    end: int

    @classmethod
    def of(cls, given, number: int) -> "Example":
        """Raises ValueError or TypeError that names the example."""
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise TypeError(f"examples[{number}] must be (ids, start, end); got {given!r}")
        ids, start, end = torch.as_tensor(given[0]), given[1], given[2]
        if ids.ndim != 1 or ids.is_floating_point():
            raise TypeError(f"examples[{number}]: ids must be token ids [T]; got {ids.dtype} {tuple(ids.shape)}")
        if not 0 <= start < end or end + 1 >= len(ids):
            raise ValueError(
                f"examples[{number}]: the thought [start, end) must hold a token, and a closing tag and an answer"
                f" must follow; got start={start}, end={end} of {len(ids)} tokens"
            )
        return cls(ids.long(), start, end)


class Prepared(NamedTuple):
    """Of one example, on the CPU: hidden [n, h] of its thought's tokens and labels [n, outputs], unscaled."""

    hidden: torch.Tensor
    labels: torch.Tensor


class TrainingRun(NamedTuple):
    """Settings of `train`; see there."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float
    scale: str
    seed: int
    examples: int


@torch.no_grad()
def answer_attention(model, example: Example, layers: Sequence[int] | None = None) -> Prepared:
    """What the answer attends to, and the hidden states that must tell it.

    labels: softmax attention in float32, its diagonal 0, mean over heads and over the queries behind the closing tag;
    mean over all layers, or one column per layer in `layers`. The model runs with eager attention: T x T per head.
    Source: DynTS 2601.18383, compute_is_sp.
    """
    implementation = model.config._attn_implementation
    hidden: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    try:
        model.set_attn_implementation("eager")
        out = model(example.ids[None].to(model.device), output_attentions=True, use_cache=False)
    finally:
        handle.remove()
        model.set_attn_implementation(implementation)
    found = [weights if weights is None else _received(weights[0], example) for weights in out.attentions]
    if layers is None:
        labels = torch.stack([each for each in found if each is not None]).mean(0)[:, None]
    else:
        labels = torch.stack([each for number in layers if (each := found[number]) is not None], 1)
    inside = slice(example.start, example.end)
    return Prepared(hidden[-1][0, inside].cpu(), labels[inside].cpu())


def _received(weights, example: Example) -> torch.Tensor:
    """[T] float32: mean attention of the answer's queries; weights [heads, T, T]."""
    own = weights.float().clone()
    own.diagonal(dim1=1, dim2=2).zero_()
    return own[:, example.end + 1 :].mean((0, 1))


def weighted_loss(scores, labels) -> torch.Tensor:
    """Mean squared error of scores [n, outputs] to scaled labels, those in [4, 5) five times."""
    peak = (labels >= _PEAK[0]) & (labels < _PEAK[1])
    return (torch.where(peak, _PEAK_WEIGHT, 1.0) * (scores - labels) ** 2).mean()


def train(
    scorer,
    model,
    examples: Sequence[Example],
    epochs: int = 15,
    batch_size: int = 256,
    lr: float = 5e-4,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    scale: str = "power",
    seed: int = 0,
    checkpoint=None,
    save_every: int = 100,
    progress: bool = True,
) -> list[float]:
    """Train `scorer` on a frozen model; returns the loss of each step, of the resumed ones too.

    AdamW (.9, .95), linear warm-up over a share of the steps, then cosine to 0. The model runs once per example.

    Args:
        batch_size: examples a step.
        scale: of the labels, "power" (10 x^.3 / .3) or "linear" (1e4 x), both DynTS's.
        seed: of the order of the examples.
        checkpoint: folder that the state is written to every `save_every` steps and at the end, and taken up from where
            it holds one: the run is then the uninterrupted one, bit for bit. Raises ValueError for other settings.
        progress: show a bar.
    """
    run = TrainingRun(epochs, batch_size, lr, weight_decay, warmup, scale, seed, len(examples))
    _check(run)
    per_epoch = math.ceil(len(examples) / batch_size)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    losses = [] if checkpoint is None else _resume(Path(checkpoint), run, scorer, optimizer)
    layers = scorer.full_layers if scorer.per_layer else None
    was_training = model.training
    model.eval()
    prepared = [
        answer_attention(model, each, layers) for each in tqdm(examples, "attention of answers", disable=not progress)
    ]
    model.train(was_training)
    total = epochs * per_epoch
    for step in tqdm(range(len(losses), total), "TokenScorer", total, initial=len(losses), disable=not progress):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen = [prepared[i] for i in order[place * batch_size : (place + 1) * batch_size].tolist()]
        losses.append(_step(scorer, optimizer, chosen, lr * _share(step, total, warmup), scale))
        if checkpoint is not None and ((step + 1) % save_every == 0 or step + 1 == total):
            _save(Path(checkpoint), run, scorer, optimizer, losses)
    return losses


def _step(scorer, optimizer, chosen: list[Prepared], lr: float, scale: str) -> float:
    device = scorer.layers[0].weight.device
    hidden = torch.cat([each.hidden for each in chosen]).to(device)
    labels = SCALES[scale](torch.cat([each.labels for each in chosen]).to(device))
    for group in optimizer.param_groups:
        group["lr"] = lr
    # Callers may be under no_grad or inference_mode, as evaluation is.
    with torch.inference_mode(False), torch.enable_grad():
        loss = weighted_loss(scorer(hidden.clone()), labels.clone())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def _share(step: int, total: int, warmup: float) -> float:
    """Of the learning rate."""
    rising = max(1, int(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _check(run: TrainingRun) -> None:
    if not run.examples:
        raise ValueError("examples must hold one sample or more")
    for name in ("epochs", "batch_size"):
        value = getattr(run, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
    if run.scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}; got {run.scale!r}")


def _save(folder: Path, run: TrainingRun, scorer, optimizer, losses: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"scorer.{name}": tensor for name, tensor in scorer.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    # Aside and renamed: an interrupted write leaves the last state whole. The losses say which step it is of.
    record = json.dumps({"run": run._asdict(), "losses": losses})
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "new", metadata={"training": record})
    (folder / "new").replace(folder / _STATE)


def _resume(folder: Path, run: TrainingRun, scorer, optimizer) -> list[float]:
    if not (folder / _STATE).exists():
        return []
    with safe_open(folder / _STATE, "pt") as opened:
        record = json.loads(opened.metadata()["training"])
    tensors = load_file(folder / _STATE)
    for name, given in run._asdict().items():
        if record["run"][name] != given:
            raise ValueError(
                f"checkpoint {folder} was written with {name}={record['run'][name]}, and this run has {given}: use the"
                " same settings, or another folder"
            )
    parts: dict[str, dict] = {name.split(".", 1)[0]: {} for name in tensors}
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        parts[owner][rest] = tensor
    scorer.load_state_dict(parts["scorer"])
    state: dict[int, dict] = {}
    for name, tensor in parts["optimizer"].items():
        number, field = name.split(".", 1)
        state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return record["losses"]
