"""PEFT's adapters in the weights while a rollout decodes: a LoRA layer takes three products, a merged one takes one."""

from contextlib import contextmanager


@contextmanager
def merged_adapters(model, merge: bool):
    """Inside the `with`, what is active of `model`'s adapters is merged, where `merge` says so.

    After it every weight is the tensor it was before: subtracting what was added would round, and a run that goes on
    would then differ from a resumed one. Costs a copy of the adapted weights. Raises ValueError for an adapter that is
    not finite.
    """
    if not merge:
        yield
        return
    # The wrapper around token rows answers for the layer in it, which comes by itself.
    layers = [m for m in model.modules() if hasattr(m, "merged_adapters") and hasattr(m, "get_base_layer")]
    owners = [layer.get_base_layer() for layer in layers]
    before = [
        (owner, name, value, value.data) for owner in owners for name, value in owner.named_parameters(recurse=False)
    ]
    already = {layer: list(layer.merged_adapters) for layer in layers}
    try:
        model.merge_adapter(safe_merge=True)
        yield
    finally:
        for owner, name, value, data in before:
            value.data = data
            setattr(owner, name, value)
        for layer, names in already.items():
            layer.merged_adapters[:] = names
