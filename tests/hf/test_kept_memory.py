"""What a KV budget gives back, as the allocator sees it: pages that a whole call holds at most."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import FAST, PAD, SLOW
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS, PROMPT, NEW, BUDGET = 16, 32, 2000, 256
LAYERS, HEADS, WIDTH = 4, 4, 64


def peak_bytes(call):
    spec = importlib.util.spec_from_file_location("peak_memory", BENCHMARKS / "peak_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.peak_bytes(call)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_allocator_s_peak_is_that_of_the_budget():
    """16 rows of one prompt, 2000 new tokens: prompts once + rows x (budget + 1) positions, within 20 %."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": HEADS, "head_dim": WIDTH, "max_position_embeddings": 4096, "vocab_size": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=PAD, bos_token_id=2, eos_token_id=1)).eval()
    ids = torch.randint(8, 60, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    call = {"attention_mask": torch.ones_like(ids), "do_sample": True, "eos_token_id": None, "seed": 1}
    call |= {"num_return_sequences": ROWS, "kv_layout": "shared"}
    peaks = {}
    with ak.patched(model, ak.Modes(fast=FAST, slow=SLOW)):
        for name, settings in {"full": {}, "kept": {"kv_keep": ak.KeepKV(BUDGET, 0.5, 64, "key_norm")}}.items():
            model.generate(ids, max_new_tokens=2, **call)  # kernels compile on first use
            peaks[name] = peak_bytes(lambda more=settings: model.generate(ids, max_new_tokens=NEW, **call, **more))
            if peaks[name] is None:
                pytest.skip("the system does not let a process reset its peak")
    formula = (PROMPT + ROWS * (BUDGET + 1)) * LAYERS * 2 * HEADS * WIDTH * 4
    assert peaks["full"] >= 5 * peaks["kept"], peaks
    assert 0.8 * formula <= peaks["kept"] <= 1.2 * formula, (peaks, formula)
