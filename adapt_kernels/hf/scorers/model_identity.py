"""What tells one model from another, to refuse what was learnt on another one."""

import hashlib

import torch

_VALUES = 64  # of each parameter


def fingerprint(model) -> dict:
    """Model type, hidden size and a digest of some values of every parameter, in bfloat16. Reads from the device.

    PEFT's own parameters do not count: a model with an adapter on it is still the model.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and "modules_to_save" not in name:
            values = parameter.detach().flatten()[:_VALUES].to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(values.numpy().tobytes())
    return {
        "model_type": model.config.model_type,
        "hidden_size": model.get_input_embeddings().weight.shape[1],
        "weights": digest.hexdigest()[:16],
    }


def check_same(had: dict, model, what: str) -> None:
    """Raises ValueError that says how the model differs from the one that `had` is of."""
    own = fingerprint(model)
    for name, value in had.items():
        if own.get(name) != value:
            raise ValueError(
                f"{what} was trained on another model: {name} {value!r}, and this one has {own.get(name)!r}. Load the"
                " model it belongs to, or train one for this model"
            )
