"""What a program costs: a whole `generate` call of 64 rows and 16 tokens, V = 151936, with and without one.

The program has a budget of the thought with a forced sentence of 23 ids and a ban of 600 ids. The model is a Llama of
random weights (hidden 64, 2 layers), so the vocabulary is nearly all of a step. `step` is the op `steer` alone: advance
and decide, without the logits. The floor is one read of the logits of the 16 steps.
"""

import statistics
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak
from adapt_kernels.program.run import ProgramRun

ROWS, STEPS, VOCAB, PAIRS = 64, 16, 151936, 15
SAMPLING = {
    "filtered": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95},
    "T1": {"do_sample": True, "top_k": 0},
    "greedy": {"do_sample": False},
}
BUDGET_AND_BAN = {
    "spans": {"think": {"open": 6, "close": 7}},
    "rules": [
        {"force": [*range(100, 122), 7], "when": {"in": "think", "count": [12, None]}},
        {"bias": [*range(1000, 1600)], "by": "ban"},
    ],
}
PROGRAM = ak.Program.from_dict(BUDGET_AND_BAN)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    return ak.patch(LlamaForCausalLM(config).eval(), ak.Modes(fast=5, slow=6))


@pytest.mark.parametrize("sampling", SAMPLING)
def test_generate(model, benchmark, sampling):
    """The call with the program, after each of which one without: both move by a tenth from minute to minute."""
    ids = torch.randint(10, 900, (ROWS, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 6
    call = {"attention_mask": torch.ones_like(ids), "max_new_tokens": STEPS, "seed": 1, **SAMPLING[sampling]}
    plain = []

    def without():
        start = time.process_time()
        model.generate(ids, **call)
        plain.append(time.process_time() - start)

    def steered():
        model.generate(ids, program=PROGRAM, **call)

    without()
    benchmark.pedantic(steered, setup=without, rounds=PAIRS, warmup_rounds=1)
    found = benchmark.stats.stats.data
    ratios = [ours / theirs for ours, theirs in zip(found, plain[-PAIRS:], strict=True)]
    benchmark.extra_info |= {"plain": statistics.median(plain), "ratio": statistics.median(ratios)}
    benchmark.extra_info["least_ratio"] = min(found) / min(plain)


def test_step(measure):
    seeds = torch.arange(ROWS)
    run = ProgramRun([PROGRAM] * ROWS, vocab_size=VOCAB, max_new_tokens=STEPS, seeds=seeds)
    run.begin([[6]] * ROWS)
    tokens = torch.full((ROWS,), 900)

    def step():
        run.decide()
        run.advance(tokens)

    measure(step)


def test_floor(measure):
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0))
    measure(lambda: [logits.sum() for _ in range(STEPS)])
