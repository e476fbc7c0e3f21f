"""Registers ops with torch, so that torch.compile, dispatch modes and profilers see them as one call each."""

import torch

# One library for the whole package, under its name: a copy from the kernels hub has another. FRAGMENT: ops may also be
# added elsewhere under it.
_NAMESPACE = str(__package__)
LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def register(schema: str, implementation, fake, tags=(), backward=None, save=None):
    """Define `<package>::<schema>` with one implementation for every device; returns the callable op.

    schema: torch's function schema, e.g. "twice(Tensor x) -> Tensor". fake: the same signature, shapes and dtypes only.
    backward, save: as torch.library.register_autograd's `backward` and `setup_context`; None = no gradient.
    """
    name = LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"{_NAMESPACE}::{name}", backward, setup_context=save, lib=LIBRARY)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default
