"""The subclass that `patch` gives a model; copies and pickles of the model are of the original class."""

from adapt_kernels.hf.generate import ModeGenerate

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
        _CLASSES[original] = type(original.__name__, (ModeGenerate, original), namespace)
    return _CLASSES[original]


def _reduce_unpatched(self, protocol):
    return _rebuild, (type(self).original_class,), self.__dict__.copy()


def _rebuild(original: type):
    return original.__new__(original)
