"""CUDA sources of token_logprobs and policy_loss without a GPU: compiled for four architectures, run on the host."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from credit_on_host import ROOT, SOURCES, compile_library, problem, tolerance

import adapt_kernels as ak

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ARCHITECTURES = ["80", "90", "100", "120"]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@needs_nvcc
@pytest.mark.full
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_compiles_without_spills(source, architecture, tmp_path):
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", "-O3", "-std=c++17", "-lineinfo", "-gencode", code, "-Xptxas", "-v", "-Xcompiler", "-fPIC"]
    command += [f"-I{ROOT / 'csrc/include'}", "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(spills) == len(registers) == {"token_logprobs": 9, "policy_loss": 7}[source.stem]
    assert all(pair == ("0", "0") for pair in spills), done.stderr
    assert max(registers) <= 64, "four blocks of 256 threads fit a multiprocessor"


@needs_nvcc
@pytest.mark.full
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_rows_move_sixteen_bytes_at_a_time(source, tmp_path):
    """Left to itself the compiler splits what holds 16-bit numbers."""
    target = tmp_path / "kernel.ptx"
    command = ["nvcc", "-O3", "-std=c++17", "-arch=compute_90", "-ptx", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True, capture_output=True, timeout=300)
    kernels = [part for part in re.split(r"\.entry ", target.read_text())[1:] if "row" in part.split("(")[0]]
    writing = [kernel for kernel in kernels if re.search("loss_rows|gradient_rows|rescale_rows", kernel.split("(")[0])]
    assert len(writing) == {"token_logprobs": 3, "policy_loss": 6}[source.stem]
    assert all(re.search(r"\bst\.(\w+\.)*v4\.", kernel) for kernel in writing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 257, 8193])
def test_equal_to_the_reference(credit, dtype, vocab_size):
    logits, ids, old, advantages = problem(7, vocab_size, dtype)
    mask = torch.arange(7) != 5
    kinds = (torch.arange(7) % 4).to(torch.int8)
    weights = torch.linspace(0, 1, 7).double()
    logits[5], ids[5] = NAN, -100
    for temperature in (1.0,) if dtype == torch.float16 else (0.6,):
        logprobs, entropy, statistics = credit.token_logprobs(logits, ids, mask, temperature)
        leaf = logits.clone().requires_grad_()
        wanted = ak.token_logprobs(leaf, ids, mask, temperature, entropy=True, backend="reference")
        torch.testing.assert_close(logprobs, wanted[0].detach(), rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(entropy, wanted[1].detach(), rtol=4e-6, atol=4e-6)
        (wanted[0] * 1.5 + wanted[1] * 0.5).sum().backward()
        slope, bend = torch.full((2, 7), 1.5).double().unbind(0)
        gradient = credit.logit_gradient(logits, ids, statistics, slope, bend * 0 + 0.5, mask, temperature)
        assert (gradient - leaf.grad).abs().max() <= tolerance(leaf.grad, dtype)
        more = {"weights": weights, "entropy_coef": 0.1, "kl_coef": 0.01, "ref_logprobs": old - 0.5}
        leaf = logits.clone().requires_grad_()
        out = ak.policy_loss(
            leaf, ids, old, advantages, mask, kinds, temperature=temperature, backend="reference", **more
        )
        out.loss.backward()
        loss, *results, gradient = credit.policy_loss(logits, ids, old, advantages, mask, kinds, temperature, **more)
        assert loss.item() == pytest.approx(out.loss.item(), rel=4e-6, abs=4e-6)
        for got, value in zip(results, out[1:], strict=True):
            torch.testing.assert_close(got, value, rtol=2e-5, atol=4e-6)
        assert (gradient - leaf.grad).abs().max() <= tolerance(leaf.grad, dtype)
        assert not gradient[5].any()


def test_unaligned_rows_strides_and_in_place(credit):
    logits, ids, old, advantages = problem(5, 1003, torch.bfloat16, seed=1)
    wide = torch.full((5, 1010), 9.0, dtype=torch.bfloat16)
    view = wide[:, 3:1006]
    view[:] = logits
    packed = torch.zeros(6, dtype=torch.int64)
    packed[1:] = ids
    plain = credit.policy_loss(logits, ids, old, advantages)
    strided = credit.policy_loss(view, packed[1:], old, advantages, gradient=view)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True)), "bits depend on no address"
    assert (wide[:, :3] == 9).all() and (wide[:, 1006:] == 9).all()
    aligned = logits.clone()
    inplace = credit.policy_loss(aligned, ids, old, advantages, gradient=aligned)
    assert all(torch.equal(a, b) for a, b in zip(plain, inplace, strict=True))


def test_rows_without_a_distribution_and_infinities(credit):
    logits, _, old, _ = problem(8, 9000, torch.float32, seed=2)
    logits[0, :8500] = -INF
    logits[1] = -INF
    logits[2, 8999] = NAN
    logits[3] = -INF
    logits[3, 5] = NAN
    logits[4, 7] = INF
    logits[5, [7, 8200]] = INF
    logits[6, 100] = -INF
    ids = torch.tensor([8600, 1, 2, 3, 4, 7, 100, 9001])
    old, ones = torch.full_like(old, -9.0), torch.ones(8).double()
    logprobs, entropy, _ = credit.token_logprobs(logits, ids)
    assert logprobs.isnan().tolist() == [False, True, True, True, True, True, False, True]
    assert entropy.isnan().tolist() == [False, True, True, True, True, True, False, False]
    assert logprobs[0].isfinite() and logprobs[6] == -INF
    _, _, _, ratio, _, gradient = credit.policy_loss(logits, ids, old, ones)
    assert gradient[1:6].isnan().all() and gradient[[0, 6]].isfinite().all()
    assert not gradient[6].any() and not gradient[0, :8500].any()
    assert ratio[6].item() == pytest.approx(math.exp(-20))


def test_the_same_bits_in_any_batch_and_no_rows_at_all(credit):
    logits, ids, old, advantages = problem(4, 9001, torch.float16, seed=3)
    whole = credit.policy_loss(logits, ids, old, advantages)
    for i in range(4):
        part = slice(i, i + 1)
        alone = credit.policy_loss(logits[part], ids[part], old[part], advantages[part])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone[1:], whole[1:], strict=True))
    twice = credit.token_logprobs(logits, ids), credit.token_logprobs(logits, ids)
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
    assert credit.policy_loss(logits[:0], ids[:0], old[:0], advantages[:0])[0] == 0
    assert credit.token_logprobs(logits[:0], ids[:0])[0].shape == (0,)


@pytest.mark.full
def test_no_access_outside_a_buffer(tmp_path):
    """The tests above, and those of the corners, in a process with AddressSanitizer."""
    library = compile_library(tmp_path, "-fsanitize=address", "-fno-omit-frame-pointer")
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    environment = {
        **os.environ,
        "ADAPT_CREDIT_ON_HOST": str(library),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    files = (__file__, str(Path(__file__).with_name("test_credit_corners.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not full", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "AddressSanitizer" not in done.stderr
