"""Whole `generate` calls under a KV budget: time and peak memory by length, against the full cache and its rivals.

A case is `length-peer`. Peers: Hugging Face's full, quantised and sliding-window caches; ours full; and ours at a
budget of 512 positions, of which 384 stay, by score. All rows make every token; the model is random, and of a size that
lets attention over a long cache cost as much as the rest of a step.
"""

import time
from functools import cache

import pytest
import torch
from peak_memory import peak_bytes
from transformers import AutoConfig, AutoModelForCausalLM

import adapt_kernels as ak
from adapt_kernels.hf.kv.keep import Keeper

ROWS, PROMPT, BUDGET = 8, 32, 512
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SCORES = ("recent", "random", "key_norm", "key_diff", "snap", "tova", "r_kv")
PEERS = ("huggingface", "quantized", "sliding", "full", *SCORES)


@cache
def model(kind):
    torch.manual_seed(0)
    window = {"sliding_window": BUDGET} if kind == "mistral" else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **window)).eval()


def settings(peer: str) -> dict:
    """Arguments of `generate`."""
    if peer == "quantized":
        pytest.importorskip("optimum.quanto", reason="Hugging Face's QuantizedCache needs optimum-quanto")
        return {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}
    if peer in SCORES:
        return {"kv_keep": ak.KeepKV(BUDGET, 384, 64, peer), "seed": 1}
    return {"seed": 1} if peer == "full" else {}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("length", [500, 1000, 2000, 4000], ids=lambda n: f"new{n}")
def test_kv_keep(benchmark, length, peer):
    """One call, after one that is just long enough to evict; its peak beyond what was there is `extra_bytes`."""
    chosen = model("mistral" if peer == "sliding" else "llama")
    arguments = {"do_sample": True, "top_k": 0, "eos_token_id": None, **settings(peer)}
    ak.unpatch(chosen)
    if peer == "full" or peer in SCORES:
        ak.patch(chosen, ak.Modes(fast=5, slow=6))
    ids = torch.randint(8, 1000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))

    def call(new: int):
        chosen.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **arguments)

    call(2 if peer not in SCORES else BUDGET)  # kernels compile on first use
    peaks = []
    benchmark.pedantic(lambda: peaks.append(peak_bytes(lambda: call(length))), rounds=1, iterations=1)
    benchmark.extra_info["extra_bytes"] = peaks[0]
    if peer == "full" or peer in SCORES:
        stats = ak.last_stats(chosen)
        benchmark.extra_info |= {"kv_bytes": stats.kv_bytes_peak, "evictions": stats.kv_evictions}


@pytest.mark.parametrize("score", SCORES)
def test_cost_of_scoring(benchmark, monkeypatch, score):
    """The share of a call's time that its evictions take, from scores to the KV that moves: `evict_share`.

    Of 8 rows x 1200 new tokens, six evictions. Two calls cannot be subtracted: they differ by more than this.
    """
    chosen, spent, plain = ak.patch(model("llama"), ak.Modes(fast=5, slow=6)), [], Keeper.evict

    def timed(*arguments):
        start = time.process_time()
        plain(*arguments)
        spent.append(time.process_time() - start)

    monkeypatch.setattr(Keeper, "evict", timed)
    ids = torch.randint(8, 1000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    call = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0, "eos_token_id": None}
    call |= settings(score)
    chosen.generate(ids, max_new_tokens=BUDGET + 2, **call)  # kernels compile on first use
    spent.clear()
    benchmark.pedantic(lambda: chosen.generate(ids, max_new_tokens=1200, **call), rounds=1, iterations=1)
    ak.unpatch(chosen)
    benchmark.extra_info["evict_share"] = sum(spent) / benchmark.stats.stats.total
