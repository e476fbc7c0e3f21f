"""Whether Triton can run on this machine; the same for every op."""

try:
    import triton
except ImportError as error:
    triton, _import_error = None, error

# Of every launch. a * b + c in one instruction: Triton 3.9 warns where this is left open, 3.10 turns it off.
OPTIONS = {"enable_fp_fusion": True}


def unavailable_reason() -> str | None:
    """None if Triton can run here, else why not and what to do."""
    if triton is None:
        return f"Triton cannot be imported ({_import_error}): pip install triton"
    if triton.knobs.runtime.interpret:
        return None
    try:
        triton.runtime.driver.active.get_current_target()
    except RuntimeError as error:
        return f"Triton finds no GPU driver ({error})"
    return None
