"""Which backend runs an op: an automatic choice takes the fastest that can run, an explicit one runs or raises."""


def backends() -> dict[str, str | None]:
    """Every backend of this version: None if it can run here, else the reason it cannot."""
    return {"reference": None}


def resolve(backend: str) -> str:
    """The backend that runs. Raises ValueError for a name this version does not have."""
    known = backends()
    if backend == "auto":
        return next(name for name, reason in known.items() if reason is None)
    if backend not in known:
        raise ValueError(f"backend={backend!r} is not in this version; allowed: 'auto', {', '.join(map(repr, known))}")
    if known[backend] is not None:
        raise RuntimeError(f"backend={backend!r} cannot run here: {known[backend]}")
    return backend
