"""`PrefixScorer`: how promising a prefix is, read by the model itself from the prefix's own KV (STOP)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapt_kernels.hf.scorers.model_identity import check_same, fingerprint
from adapt_kernels.hf.scorers.prefix_training import Fit, fit_scorer
from adapt_kernels.hf.scorers.prefixes import checked_prefixes, hidden_behind
from adapt_kernels.hf.scorers.side_adapter import SideAdapter

_SETTINGS, _WEIGHTS = "prefix_scorer.json", "prefix_scorer.safetensors"
_BATCH = 32


class PrefixScorer:
    """A learned vector appended `num_tokens` times to a cached prefix, LoRA on q and v for those positions only, and a
    linear head of two classes on the last one's hidden state; the score is softmax[1], the chance of a right answer.

        scorer = PrefixScorer(model)
        scorer.fit(prefixes, share_of_right_continuations)
        model.generate(**inputs, num_return_sequences=16, paths=Paths(keep=4, at=64, score=scorer))

    The prefix's KV stays as the model computes it, and outside of scoring the model is what it was. A prefix is the
    whole row: prompt and new tokens.

    Args:
        model: patched or not; it must take inputs_embeds and have output embeddings.
        rank, alpha, dropout: of LoRA; alpha=None: 2 * rank.
        num_tokens: how often the vector is appended.
        targets: names of the layers that get LoRA.
        init_token: the id whose embedding the vector starts from; None: the mean of all embeddings.
        seed: of LoRA's and the head's first weights; torch's generators stay as they are.

    Source: STOP, arXiv 2604.16029 (ACL 2026).
    """

    appends, reads_tokens = True, False

    def __init__(
        self,
        model,
        *,
        rank: int = 64,
        alpha: int | None = None,
        dropout: float = 0.05,
        num_tokens: int = 4,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        init_token: int | None = None,
        seed: int = 0,
    ):
        model = _base(model)
        if model.get_output_embeddings() is None:
            raise ValueError(
                f"PrefixScorer: {type(model).__name__} has no output embeddings to read hidden states from"
            )
        for name, value in (("rank", rank), ("num_tokens", num_tokens)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"PrefixScorer: {name} must be an integer of at least 1; got {value!r}")
        self.model, alpha = model, 2 * rank if alpha is None else alpha
        self.settings: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": dropout, "num_tokens": num_tokens}
        self.settings["targets"] = list(targets)
        first = _first_vector(model.get_input_embeddings(), init_token)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.adapter = SideAdapter(model, tuple(targets), rank, alpha, dropout)
            self.head = nn.Linear(len(first), 2, device=first.device)
        self.vector = nn.Parameter(first)
        self.adapter.train(False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learnt, by name."""
        head = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return {"vector": self.vector, **head, **self.adapter.parameters}

    def embeds(self) -> torch.Tensor:
        """[num_tokens, h]: what is appended, in the model's dtype."""
        dtype = self.model.get_input_embeddings().weight.dtype
        return self.vector.to(dtype).expand(self.settings["num_tokens"], -1)

    def logits(self, prefixes: list[torch.Tensor]) -> torch.Tensor:
        """[n, 2] float32 for n prefixes of ids."""
        return self.head(hidden_behind(self.model, prefixes, self.embeds(), self.adapter.active()).float())

    @torch.no_grad()
    def __call__(self, view) -> torch.Tensor:
        """[n] float32 in [0, 1]: the chance of a right answer, of the rows of a `PathView`."""
        hidden = view.append(self.embeds(), adapter=self.adapter.active())
        return torch.softmax(self.head(hidden[:, -1].float()), -1)[:, 1]

    @torch.no_grad()
    def score(self, prefixes: Sequence, batch_size: int = _BATCH) -> torch.Tensor:
        """The same for prefixes given as ids, a list of sequences; on the CPU."""
        found, ids = [], checked_prefixes(prefixes)
        for start in range(0, len(ids), batch_size):
            found.append(torch.softmax(self.logits(ids[start : start + batch_size]), -1)[:, 1].cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def fit(self, prefixes: Sequence, labels: Sequence[float], **settings) -> list[dict]:
        """Learn from prefixes and the shares of their continuations that are right; settings: of `Fit`.

        Returns per epoch {"epoch", "loss", "validation"}: mean soft cross-entropy, and the mean squared error of the
        probabilities on `validation` (None without), whose best epoch is kept. Raises ValueError for labels outside
        [0, 1], other counts, or a folder that holds a run of other data or settings.
        """
        return fit_scorer(self, checked_prefixes(prefixes), labels, Fit(**settings))

    def check_model(self, model) -> None:
        """Raises ValueError unless this scorer can score the rows of `model`."""
        if _base(model) is not self.model:
            check_same(fingerprint(self.model), model, "this PrefixScorer")
            raise ValueError(
                "this PrefixScorer holds the layers of another copy of the model: load it for this one,"
                " PrefixScorer.from_pretrained(folder, model)"
            )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write prefix_scorer.safetensors and prefix_scorer.json, which names the model."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}, folder / _WEIGHTS)
        told = {"format": 1, "settings": self.settings, "model": fingerprint(self.model)}
        (folder / _SETTINGS).write_text(json.dumps(told, indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, model) -> "PrefixScorer":
        """Raises FileNotFoundError, or ValueError for a scorer of another model."""
        folder = Path(folder)
        told = json.loads((folder / _SETTINGS).read_text("utf-8"))
        if told.get("format") != 1:
            raise ValueError(f"{folder / _SETTINGS}: format must be 1; got {told.get('format')!r}")
        check_same(told["model"], _base(model), f"the scorer in {folder}")
        scorer = cls(model, **told["settings"])
        scorer.load(load_file(folder / _WEIGHTS))
        return scorer

    @torch.no_grad()
    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Take weights of the same names and shapes; raises ValueError for others, before any is taken."""
        own = self.parameters
        wrong = [n for n in {*own, *weights} if n not in own or n not in weights or own[n].shape != weights[n].shape]
        if wrong:
            raise ValueError(f"PrefixScorer: {min(wrong)} is missing or has another shape")
        for name, parameter in own.items():
            parameter.copy_(weights[name])


@torch.no_grad()
def _first_vector(embeddings, token: int | None) -> torch.Tensor:
    """[h] float32: what the embeddings give for a token, which need not be its row of their weight; None: for all."""
    count, device = len(embeddings.weight), embeddings.weight.device
    if token is not None and (isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < count):
        raise ValueError(f"PrefixScorer: init_token must be an id of the vocabulary, 0 to {count - 1}; got {token!r}")
    ids = torch.arange(count, device=device) if token is None else torch.tensor([token], device=device)
    return embeddings(ids).float().mean(0)


def _base(model):
    """The model that `generate` runs: PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
