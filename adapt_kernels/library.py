"""Registers ops with torch, so that torch.compile, dispatch modes and profilers see them as one call each."""

import torch

# One library for the whole package; FRAGMENT: ops may also be added elsewhere under this name.
LIBRARY = torch.library.Library("adapt_kernels", "FRAGMENT")


def register(schema: str, implementation, fake, tags=(), backward=None, save=None):
    """Define `adapt_kernels::<schema>` with one implementation for every device; returns the callable op.

    schema: torch's function schema, e.g. "twice(Tensor x) -> Tensor". fake: the same signature, shapes and dtypes only.
    backward, save: as torch.library.register_autograd's `backward` and `setup_context`; None = no gradient.
    """
    name = LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"adapt_kernels::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"adapt_kernels::{name}", backward, setup_context=save, lib=LIBRARY)
    return getattr(torch.ops.adapt_kernels, name).default
