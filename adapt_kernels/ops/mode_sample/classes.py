"""Logits edited by token class: how a program's bans and biases reach the sampler without a pass of their own."""

import torch

_NEG_INF = float("-inf")


def class_edited(logits, token_classes, class_scale, class_bias) -> torch.Tensor:
    """logits [N, V] * scale + bias of each id's class, in float32 (float64 for float64 logits).

    token_classes uint8 [V or less], class 0 for the ids beyond; class_scale and class_bias [N, E] float32. -inf, as a
    logit and as a bias, wins over everything; NaN stays unless its bias is -inf. token_classes None: logits as given.
    """
    if token_classes is None:
        return logits
    classes = torch.nn.functional.pad(token_classes.long(), (0, logits.shape[1] - len(token_classes)))
    real = logits.double() if logits.dtype == torch.float64 else logits.float()
    scale, bias = class_scale[:, classes], class_bias[:, classes]
    gone = (logits == _NEG_INF) | (bias == _NEG_INF)
    return (real * scale + bias).masked_fill(gone, _NEG_INF)


def check_class_edits(token_classes, class_scale, class_bias, count: int, logits) -> dict:
    """The three arguments on the device of the logits. Raises ValueError or TypeError naming the argument."""
    if token_classes is None:
        if class_scale is not None or class_bias is not None:
            raise ValueError("class_scale and class_bias need token_classes=, the class of every token id; got None")
        return {}
    if not torch.is_tensor(token_classes) or token_classes.dtype != torch.uint8 or token_classes.ndim != 1:
        raise TypeError("token_classes must be a uint8 tensor [V], the class of every token id")
    if len(token_classes) > logits.shape[-1]:
        raise ValueError(
            f"token_classes has {len(token_classes)} ids, and the logits only {logits.shape[-1]}: give at most so many"
        )
    given = {"class_scale": class_scale, "class_bias": class_bias}
    shapes = {name: tuple(value.shape) for name, value in given.items() if torch.is_tensor(value)}
    if (
        not shapes
        or len(set(shapes.values())) > 1
        or any(len(s) != 2 or s[0] != count or s[1] == 0 for s in shapes.values())
    ):
        raise ValueError(
            f"class_scale and class_bias must be tensors [{count}, E], one line per row and one column per class; got"
            f" {shapes or 'none'}"
        )
    template = next(value for value in given.values() if torch.is_tensor(value))
    if logits.device.type != "cpu" and not torch.compiler.is_compiling():
        check_classes(token_classes, template)  # nobody looks there
    neutral = {"class_scale": torch.ones, "class_bias": torch.zeros}
    edits = {
        name: (value if value is not None else neutral[name](template.shape)).to(logits.device, torch.float32)
        for name, value in given.items()
    }
    return {"token_classes": token_classes.to(logits.device), **edits}


def check_classes(token_classes, class_bias) -> None:
    """Where the host can see them: every class has a column. Raises ValueError."""
    if token_classes is None or token_classes.device.type != "cpu" or not len(token_classes):
        return
    highest, classes = int(token_classes.max()), class_bias.shape[1]
    if highest >= classes:
        raise ValueError(f"token_classes has class {highest}, and class_bias {classes} columns: one for each class")
