"""Hooks of others on the patched model itself: counting what is computed is welcome, changing it may index rows.

Unlike a hook on a submodule (`row_hooks`), one on the model may be somebody's meter, so it is watched at work.
"""

import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from types import FrameType

import torch

from adapt_kernels.hf.row_hooks import row_independent_hook, shown

_BETWEEN = ("adapt_kernels", "contextlib", "torch", "transformers")


class ModelHooks:
    """The hooks on one model that nobody has vouched for, by their handles' ids."""

    def __init__(self, model):
        self._model = model
        own = (*model._forward_pre_hooks.items(), *model._forward_hooks.items())
        self._others = {handle: hook for handle, hook in own if not row_independent_hook(hook)}
        self.handles = frozenset(self._others)
        self._changes = False

    def reason(self) -> str:
        names = ", ".join(shown(hook) for hook in self._others.values())
        changes = "changes" if not torch.is_inference_mode_enabled() else "could, unseen under inference_mode, change"
        return f"the forward hook {names} on the model {changes} what goes into or out of it, so it may index rows"

    @contextmanager
    def first(self):
        """Around the first forward over merged rows. Yields itself: `changes` tells afterwards whether rows must stay.

        A hook that cannot take fewer rows than the call has fails here: that tells the same.
        """
        try:
            with self.watching():
                yield self
        except Exception:
            if not self._others:
                raise
            self._changes = True

    @property
    def changes(self) -> bool:
        return self._changes

    def later(self):
        """Around a later forward, when rows have moved: warns once of a hook that begins to change things."""
        return self._warning() if self._others and not self._changes else nullcontext()

    @contextmanager
    def _warning(self):
        with self.watching():
            yield
        if self._changes:
            warnings.warn(
                f"{self.reason()}; it began when rows had been merged or moved, so one that indexes rows met others."
                " Let it change the first forward too, and rows will stay in place, or vouch for it with"
                " adapt_kernels.row_independent(hook)",
                stacklevel=_level_of_the_caller(),
            )

    @contextmanager
    def watching(self):
        """Compares what the first and the last hook see, before and after the forward."""
        if not self._others:
            yield
            return
        seen = {}

        def before(module, args, kwargs):
            seen["inputs"] = _marks((args, kwargs))

        def entering(module, args, kwargs):
            self._changes |= seen["inputs"] != _marks((args, kwargs))

        def leaving(module, args, output):
            seen["output"] = _marks(output)

        def after(module, args, output):
            self._changes |= seen["output"] != _marks(output)

        handles = [
            self._model.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            self._model.register_forward_pre_hook(entering, with_kwargs=True),
            self._model.register_forward_hook(leaving, prepend=True),
            self._model.register_forward_hook(after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _level_of_the_caller() -> int:
    """For `warnings.warn` one function up: the frame that called `generate`."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level


def _marks(value) -> object:
    """What tells whether a structure or a tensor in it was exchanged or written to."""
    if isinstance(value, torch.Tensor):
        # Inference tensors count no writes: nothing proves that they were left alone.
        return object() if value.is_inference() else (id(value), value._version)
    if isinstance(value, Mapping):
        return {name: _marks(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marks(item) for item in value]
    return id(value)
