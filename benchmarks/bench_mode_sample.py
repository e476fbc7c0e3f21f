"""mode_sample against Hugging Face's processors + multinomial, top-k first, torch.compile, and GPU samplers.

A case is `logits-vocabulary-rows-filters-peer`. `one_read` is the floor: a maximum over the same bytes.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.generation import logits_process as lp

import adapt_kernels as ak

MODES = ak.Modes(fast=5, slow=6)
T = {"temperature": 0.7}
FILTERS = {
    "none": {},
    "T": T,
    "k50": {**T, "top_k": 50},
    "p95": {**T, "top_p": 0.95},
    "k20p95": {**T, "top_k": 20, "top_p": 0.95},
    "minp": {**T, "min_p": 0.05},
    "all": {**T, "top_k": 50, "top_p": 0.95, "min_p": 0.05},
    "mode": {**T, "modes": MODES, "at_mode": True, "mode_bias": 1.5},
}
ROWS = (1, 8, 64, 512)
# SmolLM2's recorded rows have its own vocabulary.
LOGITS = [("randn", 32000), ("randn", 151936), ("peaked", 32000), ("peaked", 151936), ("recorded", 49152)]
RECORDED = Path(__file__).parent / "data" / "smollm2_rows.safetensors"
# Compiling takes half a minute a case.
COMPILED = {(64, "randn", "T"), (64, "randn", "k20p95"), (64, "randn", "p95"), (64, "peaked", "p95")}


@lru_cache(maxsize=1)
def make_logits(kind, rows, vocab_size):
    generator = torch.Generator().manual_seed(0)
    if kind == "recorded":
        recorded = load_file(RECORDED)["logits"].float()
        return recorded.repeat(-(-rows // len(recorded)), 1)[:rows]
    if kind == "randn":
        return torch.randn(rows, vocab_size, generator=generator)
    # Zipf: the r-th likeliest token has probability ~ r^-1.5, as language models have it.
    order = torch.rand(rows, vocab_size, generator=generator).argsort(1)
    return -1.5 * torch.log1p(order.float())


def adapt_kernels(logits, filters):
    return lambda: ak.mode_sample(logits, seeds=7, **filters)


def huggingface(logits, filters):
    """`generate`'s own chain; the mode step as ak.ModeBias does it."""
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    chain = []
    if "modes" in filters:
        chain.append(ak.ModeBias(filters["modes"], filters["mode_bias"], prompt_length=1))
    if "temperature" in filters:
        chain.append(lp.TemperatureLogitsWarper(filters["temperature"]))
    if "top_k" in filters:
        chain.append(lp.TopKLogitsWarper(filters["top_k"]))
    if "top_p" in filters:
        chain.append(lp.TopPLogitsWarper(filters["top_p"]))
    if "min_p" in filters:
        chain.append(lp.MinPLogitsWarper(filters["min_p"]))

    def sample():
        scores = logits
        for processor in chain:
            scores = processor(ids, scores)
        return torch.multinomial(torch.softmax(scores, -1), 1)

    return sample


def topk_first(logits, filters):
    """torch.topk, then everything else on k values: what a sampler without its own kernels does."""
    if "top_k" not in filters:
        pytest.skip("it needs a top_k")

    def sample():
        values, ids = (logits / filters["temperature"]).topk(filters["top_k"])
        p = torch.softmax(values, -1)
        if "top_p" in filters:
            p = p.masked_fill(p.cumsum(-1) - p >= filters["top_p"], 0.0)
        if "min_p" in filters:
            p = p.masked_fill(p < filters["min_p"] * p[:, :1], 0.0)
        return ids.gather(1, torch.multinomial(p, 1))

    return sample


def torch_compile(logits, filters):
    return torch.compile(huggingface(logits, filters))


def flashinfer(logits, filters):
    if find_spec("flashinfer") is None or not logits.is_cuda:
        pytest.skip("flashinfer needs a GPU and its package")
    from flashinfer.sampling import top_k_top_p_sampling_from_logits

    if "min_p" in filters or "modes" in filters:
        pytest.skip("flashinfer samples with top_k and top_p")
    k, p = filters.get("top_k", logits.shape[1]), filters.get("top_p", 1.0)
    return lambda: top_k_top_p_sampling_from_logits(logits / filters.get("temperature", 1.0), k, p)


def vllm(logits, filters):
    if find_spec("vllm") is None or not logits.is_cuda:
        pytest.skip("vllm needs a GPU and its package")
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p, random_sample

    if "min_p" in filters or "modes" in filters:
        pytest.skip("vllm's kernel filters by top_k and top_p")
    k = torch.full((len(logits),), filters["top_k"], device=logits.device) if "top_k" in filters else None
    p = torch.full((len(logits),), filters["top_p"], device=logits.device) if "top_p" in filters else None

    def sample():
        kept = apply_top_k_top_p(logits / filters.get("temperature", 1.0), k, p)
        return random_sample(torch.softmax(kept, -1), {})

    return sample


def one_read(logits, filters):
    return lambda: logits.amax(-1)


PEERS = [one_read, adapt_kernels, huggingface, topk_first, torch_compile, flashinfer, vllm]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"rows{rows}")
@pytest.mark.parametrize("logits", LOGITS, ids=lambda case: f"{case[0]}-V{case[1]}")
def test_mode_sample(measure, peer, filters, rows, logits):
    kind, vocab_size = logits
    if peer is one_read and filters != "none":
        pytest.skip("the floor does not depend on the filters")
    if peer is torch_compile and ((rows, kind, filters) not in COMPILED or vocab_size != 151936):
        pytest.skip("compiled for a few cases")
    measure(peer(make_logits(kind, rows, vocab_size), FILTERS[filters]))
