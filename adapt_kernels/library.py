"""Registers ops with torch, so that torch.compile, dispatch modes and profilers see them as one call each."""

import torch

# FRAGMENT: other packages may add ops of their own under this name.
_LIBRARY = torch.library.Library("adapt_kernels", "FRAGMENT")


def register(schema: str, implementation, fake, tags=()):
    """Define `adapt_kernels::<schema>` with one implementation for every device; returns the callable op.

    schema: torch's function schema, e.g. "twice(Tensor x) -> Tensor". fake: the same signature, shapes and dtypes only.
    """
    name = _LIBRARY.define(schema, tags=tags)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"adapt_kernels::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.adapt_kernels, name).default
