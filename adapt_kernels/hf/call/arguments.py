"""What a `generate` call was given, by name."""

import inspect
from functools import cache

import torch


def eos_ids(config) -> set[int]:
    """The EOS ids of a GenerationConfig."""
    ids = config.eos_token_id
    return set() if ids is None else set(torch.as_tensor(ids).flatten().tolist())


def by_name(method, args, kwargs) -> dict:
    """A bound method's arguments by name, those of its **kwargs among them."""
    bound = _signature(method.__func__).bind_partial(method.__self__, *args, **kwargs)
    del bound.arguments["self"]
    return {**{k: v for k, v in bound.arguments.items() if k != "kwargs"}, **bound.arguments.get("kwargs", {})}


@cache
def _signature(function) -> inspect.Signature:
    return inspect.signature(function)


def prompt_in(arguments: dict):
    """The tensor that carries the batch, or None (Hugging Face then starts one row from the BOS token)."""
    for name in ("inputs", "input_ids", "inputs_embeds"):
        if arguments.get(name) is not None and len(arguments[name]):
            return arguments[name]
    return None
