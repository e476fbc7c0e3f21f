"""The subclass that `patch` gives a model; copies and pickles of the model are of the original class."""

import functools
from typing import Any

from adapt_kernels.hf.call.generate import ModeGenerate

# What our subclass overrides of methods that Hugging Face asks for their signatures.
OVERRIDDEN = ("_prepare_generation_config", "_prepare_generated_length", "_sample")
_CLASSES: dict[type, type] = {}


def is_patched_class(model_class: type) -> bool:
    """Whether `patched_class` made it."""
    return model_class in _CLASSES.values()


def patched_class(original: type) -> type:
    """The subclass of a model's class whose `generate` takes the mode arguments, always the same one."""
    if original not in _CLASSES:
        # The same names: code that looks at them (save_pretrained, cache defaults) must see the original class.
        namespace = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        namespace.update(original_class=original, __reduce_ex__=_reduce_unpatched)
        namespace |= {name: _with_their_signature(original, name) for name in OVERRIDDEN}
        _CLASSES[original] = type(original.__name__, (ModeGenerate, original), namespace)
    return _CLASSES[original]


def _with_their_signature(original: type, name: str):
    ours = getattr(ModeGenerate, name)

    @functools.wraps(getattr(original, name))
    def method(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    return method


def _reduce_unpatched(self, protocol):
    return _rebuild, (type(self).original_class,), self.__dict__.copy()


def _rebuild(original: Any):
    return original.__new__(original)
