"""Forwards over prefixes given as ids: their KV, frozen, and what a model makes of embeddings behind it."""

import inspect
import threading
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adapt_kernels.hf.compat import CACHE_NAMES

_STATELESS = (DynamicLayer, DynamicSlidingWindowLayer)


def checked_prefixes(prefixes: Sequence) -> list[torch.Tensor]:
    """One int64 vector of at least one id per prefix. Raises ValueError or TypeError."""
    if torch.is_tensor(prefixes) and prefixes.ndim != 2:
        raise ValueError(f"prefixes must be a list of id sequences; got shape {tuple(prefixes.shape)}")
    found = [torch.as_tensor(prefix) for prefix in prefixes]
    for index, ids in enumerate(found):
        if ids.ndim != 1 or not len(ids) or ids.is_floating_point():
            raise ValueError(f"prefixes[{index}] must be one or more token ids; got {prefixes[index]!r}")
    return [ids.long().cpu() for ids in found]


def hidden_behind(model, prefixes: list[torch.Tensor], embeds: torch.Tensor, adapter) -> torch.Tensor:
    """[n, h]: the last hidden state at the last of embeds [q, h], appended to each of n prefixes.

    The prefixes' KV is computed by the model as it is, without gradients; the embeddings under the context `adapter`.
    """
    device, width = embeds.device, max(map(len, prefixes))
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prefixes]).to(device)
    lengths = torch.tensor([len(p) for p in prefixes], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    arguments = {"use_cache": True, _cache_name(model): cache, **_one_logit(model)}
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=positions, **arguments)
    # Some models forget a recurrent state when more than one position follows it.
    parts = 1 if all(type(layer) in _STATELESS for layer in cache.layers) else len(embeds)
    with adapter, _kept_hidden(model) as kept:
        for part in torch.arange(len(embeds), device=device).chunk(parts):
            mask = torch.cat([mask, mask.new_ones(len(ids), len(part))], 1)
            appended = embeds[part].expand(len(ids), -1, -1)
            model(inputs_embeds=appended, attention_mask=mask, position_ids=lengths[:, None] + part, **arguments)
    return kept[-1]


@contextmanager
def _kept_hidden(model):
    """Yields a list of what the output embeddings are given inside, by this thread, at the last position."""
    kept, thread = [], threading.get_ident()

    def keep(module, args):
        if threading.get_ident() == thread:
            kept.append(args[0][:, -1])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


def _cache_name(model) -> str:
    names = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])


def _one_logit(model) -> dict:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
