"""The exponentials and sums of `csrc/cpu/simd.h`: top_p's cut is decided by their error bounds."""

import platform
import subprocess
from pathlib import Path

import pytest

from adapt_kernels.native import jit
from adapt_kernels.native.toolchain import find_toolchain

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "csrc" / "cpu"
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(jit.unavailable_reason() is not None, reason=str(jit.unavailable_reason()))
@pytest.mark.parametrize(
    "architecture", ["native", pytest.param("x86-64", marks=pytest.mark.skipif(not X86, reason="x86"))]
)
def test_error_bounds_and_sums(tmp_path, architecture):
    """With the vector instructions of this CPU, and with none but what every x86 has."""
    flags = [f"-march={architecture}" if flag == "-march=native" else flag for flag in jit.COMPILE_FLAGS]
    program = tmp_path / "simd_check"
    source = HERE / "simd_check.cpp"
    subprocess.run(
        [*find_toolchain().compiler, *flags, "-w", f"-I{HEADERS}", str(source), "-o", str(program)], check=True
    )
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    error, error_fast = map(float, done.stdout.split())
    assert error <= 1.1e-7
    assert 1.1e-7 < error_fast <= 2.5e-7, "were it as good as the other, one of them would do"
