"""A Triton driver without a GPU: launches are compiled for a chosen target and recorded, nothing runs.

Outputs of a wrapper stay uninitialised, so a wrapper that reads results back between launches shows up as garbage.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
}


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    registers: int  # per thread
    spilled: int  # bytes of stack per thread (NVIDIA), spilled registers (AMD)
    shared: int  # bytes
    code: bytes = field(repr=False, default=b"")  # the binary


@cache
def stub_driver(target_name: str) -> "StubDriver":
    """The one driver of a target: a kernel compiled once in a process goes on reporting to the driver it first had."""
    return StubDriver(target_name)


_LAUNCHES: dict[str, list["Launch"]] = {}


class StubDriver:
    """Set it with `triton.runtime.driver.set_active`; read `launches`."""

    def __init__(self, target_name: str):
        self.target, max_shared = TARGETS[target_name]
        # Triton caches compiled kernels per device number: one number per target.
        self.device = list(TARGETS).index(target_name)
        # Launchers stay with the first driver of a target that compiled them: all of a target share the list.
        self.launches = _LAUNCHES.setdefault(target_name, [])
        self.launches.clear()
        self.utils = SimpleNamespace(
            load_binary=self._load_binary, get_device_properties=lambda _: {"max_shared_mem": max_shared}
        )

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.device

    def get_current_stream(self, _device):
        return 0

    def map_python_to_cpp_type(self, _name):
        return "void*"

    def launcher_cls(self, _source, metadata):
        def launch(grid0, grid1, grid2, _stream, function, *_):
            registers, spilled, code = function
            self.launches.append(
                Launch(
                    kernel=metadata.name,
                    grid=(grid0, grid1, grid2),
                    threads=metadata.num_warps * self.target.warp_size,
                    registers=registers,
                    spilled=spilled,
                    shared=metadata.shared,
                    code=code,
                )
            )

        return launch

    def _load_binary(self, name, binary, _shared, _device):
        read = _hip_resources if self.target.backend == "hip" else _cuda_resources
        registers, spilled = read(binary)
        return name, (registers, spilled, binary), registers, spilled, 1024


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(usage[1]), int(usage[2])


def _hip_resources(hsaco: bytes) -> tuple[int, int]:
    return _message_pack_integer(hsaco, b".vgpr_count"), _message_pack_integer(hsaco, b".vgpr_spill_count")


def _message_pack_integer(blob: bytes, key: bytes) -> int:
    at = blob.index(key) + len(key)
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(blob[at], 0)
    return int.from_bytes(blob[at + 1 : at + 1 + width], "big") if width else blob[at]
