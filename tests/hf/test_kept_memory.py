"""What a KV budget gives back, as the allocator sees it: pages that a whole call holds at most."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import FAST, PAD, SLOW
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS, PROMPT, NEW, BUDGET = 16, 32, 2000, 256
LAYERS, HEADS, WIDTH = 4, 4, 64
KEEP = {"kv_keep": ak.KeepKV(BUDGET, 0.5, 64, "key_norm")}


def print_peaks():
    """Of the call with a full cache and of that with a budget, each after one that loads and compiles all it needs."""
    sys.path.insert(0, str(BENCHMARKS))
    from peak_memory import peak_bytes

    torch.set_num_threads(1)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": HEADS, "head_dim": WIDTH, "max_position_embeddings": 4096, "vocab_size": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=PAD, bos_token_id=2, eos_token_id=1)).eval()
    ids = torch.randint(8, 60, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    call = {"attention_mask": torch.ones_like(ids), "do_sample": True, "eos_token_id": None, "seed": 1}
    call |= {"num_return_sequences": ROWS, "kv_layout": "shared"}
    peaks = {}
    with ak.patched(model, ak.Modes(fast=FAST, slow=SLOW)):
        for name, settings in {"full": {}, "kept": KEEP}.items():
            generate = partial(model.generate, ids, **call, **settings)
            generate(max_new_tokens=BUDGET + 3)
            peaks[name] = peak_bytes(partial(generate, max_new_tokens=NEW))
    print(json.dumps(peaks))


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_allocator_s_peak_is_that_of_the_budget():
    """16 rows of one prompt, 2000 new tokens: prompts once + rows x (budget + 1) positions, within 20 %."""
    # glibc gives memory of more than this back at once; without it pages of freed tensors stay, some or others.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    code = "import test_kept_memory; test_kept_memory.print_peaks()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    if None in peaks.values():
        pytest.skip("the system does not let a process reset its peak")
    formula = (PROMPT + ROWS * (BUDGET + 1)) * LAYERS * 2 * HEADS * WIDTH * 4
    assert peaks["full"] >= 5 * peaks["kept"], peaks
    assert 0.8 * formula <= peaks["kept"] <= 1.2 * formula, (peaks, formula)
