"""Forwards behind the cached rows of a call that leave no trace in it."""

import copy
from contextlib import AbstractContextManager, contextmanager

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adapt_kernels.hf.kv.segments import SegmentedLayer

# Their `update` makes new tensors and leaves the old ones alone.
_REPLACED = (DynamicLayer, DynamicSlidingWindowLayer)


@contextmanager
def restored(batch):
    """What the batch's cache takes inside is gone afterwards, to the last bit."""
    cache, lengths, saved = batch.cache, {}, {}
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, SegmentedLayer):
            lengths[index] = layer.get_seq_length()
        else:
            saved[index] = dict(vars(layer)) if type(layer) in _REPLACED else copy.deepcopy(vars(layer))
    try:
        with batch.aside():
            yield
    finally:
        # A layout that turns out not to be read rightly has put other layers in their place.
        for index, length in lengths.items():
            if extra := cache.layers[index].get_seq_length() - length:
                cache.layers[index].crop(-extra)
        for index, state in saved.items():
            vars(cache.layers[index]).clear()
            vars(cache.layers[index]).update(state)


@torch.no_grad()
def appended(model, batch, input_ids, embeds, hidden, adapter: AbstractContextManager) -> torch.Tensor:
    """Last hidden states [slots, q, h] at the embeddings [slots, q, h] behind `input_ids` [slots, T], whose last token
    is not in the cache yet.

    hidden: returns what the latest forward gave to the output embeddings. One position per forward: that is what
    layers of shared prompts take.
    """
    kwargs, found = batch.kwargs, []
    with restored(batch):
        _, kwargs = step(model, batch, input_ids, kwargs)
        with adapter:
            for position in range(embeds.shape[1]):
                input_ids = torch.cat([input_ids, input_ids[:, -1:]], 1)
                _, kwargs = step(model, batch, input_ids, kwargs, embeds[:, position : position + 1])
                found.append(hidden())
    return torch.stack(found, 1)


def step(model, batch, input_ids, kwargs: dict, embeds=None) -> tuple:
    """One forward over the last token of input_ids, or the embeddings in its place: its outputs, and the model inputs
    of the next one. Only inside `restored`."""
    inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
    if embeds is not None:
        inputs = {**inputs, "input_ids": None, "inputs_embeds": embeds}
    with batch.attention():
        outputs = model(**batch.prepared(inputs), return_dict=True)
    batch.settle()
    return outputs, model._update_model_kwargs_for_generation(outputs, dict(kwargs), is_encoder_decoder=False)
