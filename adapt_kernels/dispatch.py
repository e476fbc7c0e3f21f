"""Which backend runs an op: an automatic choice takes the fastest that can run, an explicit one runs or raises."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

# Modules are named from here on down: the kernels hub gives this package another name.
_PACKAGE = __package__
# An op's folder has reference.py and those of the others that it is written for.
_FILES = {"reference": "reference", "native": "native", "triton": "triton_kernel"}
# Tells whether a backend can run here. Not imported before it is asked for: importing triton takes a second.
_DRIVERS = {"native": "native.jit", "triton": "triton_driver"}
# The first that an op has.
_FASTEST = {"cpu": ("native",), "cuda": ("triton", "native")}


class BackendError(RuntimeError):
    """A backend asked for by name cannot run here; `reason` says why and what to do."""

    def __init__(self, backend: str, reason: str):
        super().__init__(f"backend={backend!r} cannot run here: {reason}")
        self.reason = reason


def host_waits(device) -> bool:
    """Whether reading a value of tensors there makes the host wait for what is queued, so that a step must not."""
    return torch.device(device).type != "cpu"


def backends() -> dict[str, str | None]:
    """Every backend of this version: None if it can run here, else the reason it cannot. Compiles nothing."""
    return {name: unavailable_reason(name) for name in _FILES}


def unavailable_reason(backend: str) -> str | None:
    """None if `backend` can run here, else the reason and the remedy."""
    if backend == "reference":
        return None
    if backend == "native" and find_spec(f"{_PACKAGE}.native") is None:
        return "this copy of the ops comes without C++: pip install adapt_kernels"
    return import_module(f"{_PACKAGE}.{_DRIVERS[backend]}").unavailable_reason()


def choose(op: str, backend: str, logits, stacklevel: int = 8) -> ModuleType:
    """The module that runs `op` on `logits`. An explicit backend that cannot raises ValueError or RuntimeError.

    stacklevel: where the warning of a fallback points; as given, past an op's wrapper and torch's dispatcher.
    """
    if backend != "auto" and backend not in _FILES:
        raise ValueError(f"backend={backend!r} is not in this version; allowed: 'auto', {', '.join(map(repr, _FILES))}")
    # What is no tensor is refused by the op's own checks.
    if backend == "reference" or not isinstance(logits, torch.Tensor):
        return backend_module(op, "reference")
    if backend != "auto" and not _has(op, backend):
        raise ValueError(f"{op} has no backend={backend!r}; allowed: 'auto', {', '.join(map(repr, _backends_of(op)))}")
    if logits.dtype == torch.float64:
        if backend != "auto":
            raise ValueError(
                f"backend={backend!r} takes float32, bfloat16 or float16 logits; got float64, which only "
                "backend='reference' (or 'auto') takes"
            )
        return backend_module(op, "reference")
    if backend == "auto":
        return _fastest(op, logits.device.type, stacklevel)
    device = logits.device.type
    if backend == "native" and device not in (devices := backend_module(op, backend).DEVICES):
        known = " or ".join(name.upper() for name in devices)
        raise ValueError(f"backend='native' takes {known} tensors; got logits on {logits.device}")
    return _runnable(op, backend, device)


def choose_name(op: str, backend: str, logits) -> str:
    """The name of the backend `choose` takes. torch.compile can follow it: the choice is a constant of its graph."""
    if not isinstance(logits, torch.Tensor):
        choose(op, backend, logits)
        return "reference"
    return _choose_name(op, backend, logits.dtype, logits.device.type)


@torch.compiler.assume_constant_result
def _choose_name(op: str, backend: str, dtype: torch.dtype, device: str) -> str:
    # Warnings point at the caller of the op.
    module = choose(op, backend, torch.empty(0, dtype=dtype, device=device), stacklevel=6)
    return module.__name__.rpartition(".")[2]


def _has(op: str, backend: str) -> bool:
    return backend in _backends_of(op)


def _serves(op: str, backend: str, device: str) -> bool:
    return backend != "native" or device in backend_module(op, backend).DEVICES


@cache
def _backends_of(op: str) -> tuple[str, ...]:
    return tuple(name for name, file in _FILES.items() if find_spec(f"{_PACKAGE}.ops.{op}.{file}"))


@cache
def backend_module(op: str, backend: str) -> ModuleType:
    """The file of `op` that holds `backend`."""
    return import_module(f"{_PACKAGE}.ops.{op}.{_FILES[backend]}")


@cache
def _fastest(op: str, device: str, stacklevel: int) -> ModuleType:
    # Cached, so that there is one warning, and no second look for what was not there.
    name = next((name for name in _FASTEST.get(device, ()) if _has(op, name) and _serves(op, name, device)), None)
    if name is None:
        return backend_module(op, "reference")  # what was left out of C++ is not slow without it
    try:
        return _runnable(op, name, device)
    except RuntimeError as error:
        reason = getattr(error, "reason", None)  # a BackendError's or a NativeBuildError's
        if reason is None:
            raise
    warnings.warn(
        f"{op} falls back to backend='reference', which is slow: backend={name!r} cannot run here: {reason}",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
    return backend_module(op, "reference")


@cache
def _runnable(op: str, backend: str, device: str) -> ModuleType:
    if backend == "native":
        # Of several GPUs the current one; a call loads what its own tensors need.
        import_module(f"{_PACKAGE}.native.kernels").load(torch.device(device))
    elif reason := unavailable_reason(backend):
        raise BackendError(backend, reason)
    return backend_module(op, backend)
