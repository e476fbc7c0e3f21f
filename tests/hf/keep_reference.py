"""What a call with `kv_keep` must compute, from an unpatched model: every position stays in Hugging Face's cache, and
an explicit mask says which of them each step may still see."""

import torch
from keep_rule import plain
from parity import CACHE
from transformers import DynamicCache, masking_utils

from adapt_kernels.philox_reference import PURPOSE_KEEP, uniform


class Simulated:
    """The positions that a row holds, told from the settings alone. prompt: its positions, of which `pads` padding."""

    def __init__(self, settings, prompt: int, pads: int, score):
        self.settings, self.score, self.prompt, self.pads = settings, score, prompt, pads
        self.start = 0 if settings.count == "all" else prompt
        self.held, self.evictions = list(range(self.start, prompt)), 0

    def append(self, position: int) -> None:
        """Its KV was just written."""
        self.held.append(position)
        count, window = len(self.held), self.settings.window
        if count <= self.settings.budget:
            return
        keep = self.settings.keep
        outside = keep - window if isinstance(keep, int) else int(keep * (count - window))
        first = self.pads if self.settings.count == "all" else self.prompt
        guarded = [self.pads <= p < max(self.prompt, first + self.settings.sinks) for p in self.held]
        scores = [float("-inf") if p < self.pads else self.score(p) for p in self.held]
        self.held = [self.held[i] for i in plain(scores, window, outside, guarded)]
        self.evictions += 1

    def visible(self, length: int) -> torch.Tensor:
        """[length] bool"""
        seen = torch.zeros(length, dtype=torch.bool)
        seen[: self.start] = True
        seen[self.held] = True
        return seen


def score_of(name: str, seed: int, start: int):
    """The score of a position that needs no model."""
    if name == "recent":
        return float
    return lambda position: float(uniform(seed, 0, PURPOSE_KEEP, position - start))


def masks(model, kv_cache, ids, positions, held, seen):
    """As the model takes them: one 2-D mask, or one per kind of layer where some slide."""
    if not any(kv_cache.is_sliding):
        return held
    empty = torch.empty((*ids.shape, 0))
    known = {"config": model.config, "inputs_embeds": empty, CACHE: kv_cache, "position_ids": positions}
    of_held, of_seen = (masking_utils.create_masks_for_generate(attention_mask=m, **known) for m in (held, seen))
    return {kind: of_held[kind] if kind == "full_attention" else mask for kind, mask in of_seen.items()}


@torch.no_grad()
def replayed(model, inputs: dict, sequences, rows: list[Simulated]) -> torch.Tensor:
    """[rows, new, V]: the logits of every step, with the tokens of `sequences` fed in turn."""
    mask, width = inputs["attention_mask"], inputs["input_ids"].shape[1]
    kv_cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(inputs["input_ids"], attention_mask=mask, position_ids=positions, **{CACHE: kv_cache}, use_cache=True)
    found, last = [out.logits[:, -1]], positions[:, -1:]
    for step in range(sequences.shape[1] - width - 1):
        for row in rows if step else ():
            row.append(width + step - 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        last = last + 1
        token = sequences[:, width + step, None]
        held = torch.stack([row.visible(mask.shape[1] - 1) for row in rows])
        held = torch.cat([held, held.new_ones(len(held), 1)], 1) & mask.bool()
        given = masks(model, kv_cache, token, last, held.long(), mask)
        out = model(token, attention_mask=given, position_ids=last, **{CACHE: kv_cache}, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found, 1)


class ShownLogits:
    """The logits [rows, V] of every forward of a whole batch, by a hook on the model itself."""

    def __init__(self, model, rows: int):
        self.steps, self._rows, self._model = [], rows, model

    def __enter__(self):
        self._handle = self._model.register_forward_hook(self._note)
        return self

    def __exit__(self, *_):
        self._handle.remove()

    def _note(self, module, args, output):
        # Those of one or two rows belong to the proof that the model may lose positions.
        if len(output.logits) == self._rows:
            self.steps.append(output.logits[:, -1].clone())
