"""`TokenScorer`: a small head that tells from a token's last hidden state whether its KV will be missed (DynTS)."""

import json
import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from adapt_kernels.hf.scorers.model_identity import check_same, fingerprint
from adapt_kernels.hf.scorers.token_training import Example, train

_WEIGHTS, _CONFIG = "token_scorer.safetensors", "token_scorer.json"


class TokenScorer(torch.nn.Module):
    """Importance of each token for what comes after the thought, higher = more; for `KeepKV(score=)`.

        head = ak.TokenScorer(model)
        head.fit(model, examples, epochs=15)
        model.generate(**inputs, kv_keep=ak.KeepKV(2048, .3, 512, score=head))

    Linear layers without bias, Softplus after each, the last too; input: the final hidden state, as the output
    embeddings read it, of the token whose KV the same forward writes. The model stays frozen.

    Args:
        model: whose hidden states it reads; patched or not.
        widths: of the hidden layers; None = (2h, h / 2) of hidden size h. DynTS's for Llama-8B: (8192, 2048).
        per_layer: one score for each full-attention layer in place of one for all (KVzap's form).

    Source: DynTS 2601.18383, KVzap 2601.07891.
    """

    def __init__(self, model, widths: tuple[int, ...] | None = None, per_layer: bool = False):
        super().__init__()
        hidden = model.config.get_text_config(decoder=True).hidden_size
        widths = (2 * hidden, hidden // 2) if widths is None else tuple(widths)
        if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
            raise ValueError(f"widths must be positive integers, one per hidden layer; got {widths!r}")
        self.widths, self.per_layer = widths, bool(per_layer)
        self.identity = fingerprint(model)
        self.full_layers = _full_layers(model)
        sizes = (hidden, *widths, len(self.full_layers) if per_layer else 1)
        layers = [torch.nn.Linear(a, b, bias=False) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.layers = torch.nn.ModuleList(layers).to(model.device)
        self._checked = lambda: None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., outputs] float32 > 0 for hidden [..., h] of any floating dtype."""
        scores = hidden.to(next(self.parameters()).dtype)
        for layer in self.layers:
            scores = functional.softplus(layer(scores))
        return scores.float()

    @torch.no_grad()
    def token_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows], or [rows, layers], for hidden [rows, h]."""
        scores = self(hidden)
        return scores if self.per_layer else scores[..., 0]

    def check_model(self, model) -> None:
        """Raises ValueError unless the head was made for this model. Reads some weights the first time."""
        if self._checked() is model:
            return
        check_same(self.identity, model, "this TokenScorer")
        self._checked = weakref.ref(model)

    def fit(self, model, examples, **settings) -> list[float]:
        """Train on a frozen model; returns the loss of each step. See `token_training.train` for the settings.

        examples: `(ids, start, end)` each, a correct sample: ids a list or int64 [T], the thought [start, end) without
        its tags, then the answer up to T.
        """
        self.check_model(model)
        return train(self, model, [Example.of(each, number) for number, each in enumerate(examples)], **settings)

    def save_pretrained(self, folder) -> None:
        """Write `token_scorer.safetensors` and `token_scorer.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / _WEIGHTS)
        settings = {"widths": self.widths, "per_layer": self.per_layer, "model": self.identity}
        (folder / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, folder, model) -> "TokenScorer":
        """The head in a folder. Raises ValueError where it was trained on another model, or there is none."""
        path = Path(folder) / _CONFIG
        if not path.exists():
            raise ValueError(f"{folder} holds no TokenScorer: {_CONFIG} is missing")
        settings = json.loads(path.read_text("utf-8"))
        scorer = cls.__new__(cls)
        torch.nn.Module.__init__(scorer)
        scorer.identity, scorer._checked = settings["model"], lambda: None
        scorer.check_model(model)
        cls.__init__(scorer, model, tuple(settings["widths"]), settings["per_layer"])
        scorer.load_state_dict(load_file(Path(folder) / _WEIGHTS))
        return scorer

    def __deepcopy__(self, memo):
        raise TypeError("a TokenScorer is not copied: save_pretrained and from_pretrained make another one")


def _full_layers(model) -> list[int]:
    """The numbers of the layers whose cache grows with the context."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return [number for number, layer in enumerate(layers) if type(layer) is DynamicLayer]
