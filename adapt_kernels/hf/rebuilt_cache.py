"""The cache that plan "full" returns when rows have left: computed again, if anybody looks at it."""

import torch
from transformers import DynamicCache


class RebuiltCache(DynamicCache):
    """A `DynamicCache` of all rows and positions, equal to Hugging Face's up to rounding.

    Finished rows gave their KV back during the call, so the first access runs one forward of the model over the
    returned sequences. Holds the model and the call's inputs until then.
    """

    def __init__(self, rebuild):
        self.__dict__["_rebuild"] = rebuild

    def __getattr__(self, name: str):
        rebuild = self.__dict__.pop("_rebuild", None)
        if rebuild is None or name.startswith("__"):
            if rebuild is not None:
                self.__dict__["_rebuild"] = rebuild
            raise AttributeError(name)
        self.__dict__.update(vars(rebuild()))
        return getattr(self, name)


@torch.no_grad()
def rebuild(model, config, prompt_kwargs: dict, cache_name: str, prompt_length: int, sequences) -> DynamicCache:
    """The cache after a forward over all but the last position of `sequences` [rows, T]."""
    new = sequences.shape[1] - 1 - prompt_length
    kwargs = {**prompt_kwargs, cache_name: DynamicCache(config=model.config.get_text_config(decoder=True))}
    if kwargs.get("inputs_embeds") is not None:
        later = model.get_input_embeddings()(sequences[:, prompt_length:-1])
        kwargs["inputs_embeds"] = torch.cat([kwargs["inputs_embeds"], later], 1)
    if kwargs.get("attention_mask") is not None:
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), new)], 1)
    if kwargs.get("token_type_ids") is not None:
        types = kwargs["token_type_ids"]
        kwargs["token_type_ids"] = torch.cat([types, types[:, -1:].expand(-1, new)], 1)
    if kwargs.get("position_ids") is not None:
        positions = kwargs["position_ids"]
        later = positions[:, -1:] + torch.arange(1, new + 1, device=positions.device)
        kwargs["position_ids"] = torch.cat([positions, later], 1)
    model._prefill(sequences[:, :-1], config, kwargs)
    return kwargs[cache_name]
