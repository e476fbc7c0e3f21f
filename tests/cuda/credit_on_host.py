"""The .cu files of token_logprobs and policy_loss as a library of the host, called through their C ABI."""

import ctypes
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import torch

import adapt_kernels as ak

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / f"csrc/cuda/{name}.cu" for name in ("token_logprobs", "policy_loss")]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LIMITS = ("block_shared", "multiprocessor_shared", "clusters", "largest_cluster")
P, I64, F64, I32, BOOL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int32, ctypes.c_bool


def cuda_home() -> Path | None:
    for folder in (Path("/usr/local/cuda"), *Path("/usr/local").glob("cuda-*")):
        if (folder / "include/cuda_bf16.h").is_file():
            return folder
    nvcc = shutil.which("nvcc")
    home = Path(nvcc).resolve().parents[1] if nvcc else None
    return home if home and (home / "include/cuda_bf16.h").is_file() else None


def structure(*fields):
    return type("Arguments", (ctypes.Structure,), {"_fields_": list(fields)})


@cache
def argument(kind):
    return structure(("value", kind), ("per_row", P))


ROWS = structure(
    ("data", P),
    ("type", I32),
    ("count", I64),
    ("inner", I64),
    ("vocab_size", I64),
    ("outer", I64),
    ("inner_stride", I64),
)
TOKEN = structure(
    ("logits", ROWS), ("ids", P), ("mask", P), ("temperature", argument(F64)),
    ("logprobs", P), ("entropy", P), ("statistics", P), ("threads", I32),
)  # fmt: skip
GRADIENT = structure(
    ("logits", ROWS), ("ids", P), ("mask", P), ("temperature", argument(F64)), ("statistics", P),
    ("logprob_slope", P), ("entropy_slope", P), ("gradient", ROWS), ("zeroed", BOOL), ("threads", I32),
)  # fmt: skip
POLICY = structure(
    ("logits", ROWS), ("ids", P), ("mask", P), ("temperature", argument(F64)), ("old", P), ("advantages", P),
    ("kinds", argument(ctypes.c_int8)), ("weights", argument(F64)), ("ref", P), ("settings", F64 * 5),
    ("gradient_scale", F64), ("loss", P), ("losses", P), ("logprobs", P), ("entropy", P), ("ratio", P), ("clipped", P),
    ("gradient", ROWS), ("zeroed", BOOL), ("threads", I32),
)  # fmt: skip


def compile_library(folder: Path, *flags: str, name: str = "credit_on_host") -> Path:
    """g++ over the sources as they are, with the shim for a device."""
    includes = [f"-I{ROOT / 'csrc/include'}", f"-I{ROOT / 'csrc/cuda'}", f"-I{Path(__file__).parent}"]
    target = folder / f"{name}.so"
    command = ["g++", "-std=c++17", "-O2", "-g", "-shared", "-fPIC", "-w", *flags, *includes]
    command += [f"-isystem{cuda_home() / 'include'}", "-x", "c++", *map(str, SOURCES), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def compile_binding(folder: Path) -> Path:
    """The same as the Python module that nvcc makes of them."""
    import pybind11

    headers = (pybind11.get_include(), sysconfig.get_path("include"))
    flags = ("-O0", "-g0", "-fvisibility=hidden", *(f"-isystem{header}" for header in headers))
    return compile_library(folder, *flags, str(ROOT / "csrc/cuda/bindings.cpp"), name="adapt_cuda")


def problem(rows, vocab_size, dtype, seed=0):
    """(logits, ids, old log-probs, advantages) with ratios on both sides of every clip."""
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(rows, vocab_size, generator=generator)).to(dtype)
    ids = torch.randint(0, vocab_size, (rows,), generator=generator)
    old = ak.token_logprobs(logits, ids, backend="reference")[0].double()
    old += torch.tensor([0.0, 0.1, -0.5, 2.0, -2.0, 50, -50])[torch.arange(rows) % 7]
    advantages = torch.tensor([1.0, -1.5, 0.0, 2.0, -0.3]).double()[torch.arange(rows) % 5]
    return logits, ids, old, advantages


def tolerance(value, dtype):
    """One unit of the type at the largest entry; a few float32 roundings for float32."""
    largest = value.double().abs().nan_to_num(posinf=0).max().item()
    return max(largest, 1e-3) * {torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


def rows(tensor, shape=None):
    if tensor is None:
        return ROWS(None, 0, *shape, 0, 0)
    count, vocab_size = tensor.shape
    return ROWS(tensor.data_ptr(), TYPES[tensor.dtype], count, 1, vocab_size, tensor.stride(0), 0)


class Credit:
    """The library's functions on tensors."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self.library.adapt_token_logprobs_workspace.argtypes = [I64, I64]
        self.library.adapt_token_logprobs_workspace.restype = I64

    def _number(self, name):
        return I64.in_dll(self.library, f"adapt_host_{name}")

    def limits(self):
        """Of the device played: shared memory of a block, of a multiprocessor, whether it has clusters, the largest."""
        return tuple(self._number(name).value for name in LIMITS)

    def set_limits(self, *limits):
        """Another device."""
        for name, limit in zip(LIMITS, limits, strict=False):
            self._number(name).value = limit

    def last_launch(self):
        """(blocks per cluster, shared bytes per block) of the last launch that asks for them."""
        return self._number("last_cluster").value, self._number("last_shared").value

    def token_logprobs(self, logits, ids, mask=None, temperature=1.0):
        count = len(ids)
        logprobs, entropy = torch.full((2, count), 77.0).unbind(0)
        statistics = torch.full((count, 3), 77.0, dtype=torch.float64)
        size = self.library.adapt_token_logprobs_workspace(count, logits.shape[1])
        workspace = torch.full((max(size, 1),), 0xCB, dtype=torch.uint8)
        arguments = TOKEN(
            rows(logits), address(ids), address(mask), argument(F64)(temperature, None),
            address(logprobs), address(entropy), address(statistics), 1,
        )  # fmt: skip
        assert not self.library.adapt_token_logprobs_cuda(ctypes.byref(arguments), P(address(workspace)), None)
        return logprobs, entropy, statistics

    def logit_gradient(self, logits, ids, statistics, slope, bend, mask=None, temperature=1.0):
        gradient = torch.full_like(logits, 77)
        arguments = GRADIENT(
            rows(logits), address(ids), address(mask), argument(F64)(temperature, None), address(statistics),
            address(slope), address(bend), rows(gradient), False, 1,
        )  # fmt: skip
        assert not self.library.adapt_logit_gradient_cuda(ctypes.byref(arguments), None)
        return gradient

    def policy_loss(self, logits, ids, old, advantages, mask=None, kinds=None, temperature=1.0, gradient=None, **more):
        """(loss, logprobs, entropy, ratio, clipped, gradient); one made here holds 77 before."""
        count = len(ids)
        loss, losses = torch.zeros((), dtype=torch.float64), torch.full((count,), 77.0, dtype=torch.float64)
        logprobs, entropy, ratio = torch.full((3, count), 77.0).unbind(0)
        clipped = torch.zeros(count, dtype=torch.bool)
        gradient = torch.full_like(logits, 77) if gradient is None else gradient
        weights, ref = more.get("weights"), more.get("ref_logprobs")
        settings = (more.get("clip_low", 0.2), more.get("clip_high", 0.28), 3.0)
        settings += (more.get("kl_coef", 0.0), more.get("entropy_coef", 0.0))
        arguments = POLICY(
            rows(logits), address(ids), address(mask), argument(F64)(temperature, None), address(old),
            address(advantages), argument(ctypes.c_int8)(1, address(kinds)), argument(F64)(1.0, address(weights)),
            address(ref), (F64 * 5)(*settings), 1.0, address(loss), address(losses), address(logprobs),
            address(entropy), address(ratio), address(clipped), rows(gradient), False, 1,
        )  # fmt: skip
        assert not self.library.adapt_policy_loss_cuda(ctypes.byref(arguments), None)
        return loss, logprobs, entropy, ratio, clipped, gradient
