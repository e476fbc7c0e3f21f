"""The most memory a call holds beyond what was there before it: resident pages on a CPU, allocated bytes on a GPU."""

import ctypes
import re
from contextlib import suppress

import torch


def peak_bytes(call, device="cpu") -> int | None:
    """Of one call, its result included; None where the system does not tell."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)  # what it kept for itself would hide what the call takes
    try:
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    result = call()
    most = _resident("VmHWM")
    del result
    return most - before


def _resident(field):
    with open("/proc/self/status") as status:
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read())[1]) << 10
