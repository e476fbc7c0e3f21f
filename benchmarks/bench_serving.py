"""What a step of a serving engine pays for the rows of `ModeProcessor`: no engine, the logits of SmolLM2's vocabulary.

`test_model_step` is a decode step of SmolLM2 at the same batch, by Hugging Face's forward: an engine's step takes that,
and its scheduler's time.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from adapt_kernels import Modes
from adapt_kernels.program.rules import Span
from adapt_kernels.serving.control import HostTokens, RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import parse
from adapt_recipes import smollm2

VOCAB, ROWS, CACHED = 49_152, (1, 32, 256), 64
KINDS = {"off the gate": {"fast_prob": 0.5}, "budget": {"thinking_budget": 10**6}, "at the gate": {"fast_prob": 0.5}}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_step(measure, benchmark, kind, rows):
    control = RowControl(
        Served(Modes(fast=5, slow=6), {}, (2,), spans={"think": Span(6, 8)}), VOCAB, torch.device("cpu")
    )
    settings = parse(KINDS[kind], control.served)
    said = [[] if kind == "at the gate" else [5] for _ in range(rows)]
    for slot, own in enumerate(said):
        control.add(slot, Row(settings, [1, 2, 3], own, slot, 0.7, 2**30))
    logits = torch.randn(rows, VOCAB)

    def step():
        control.step(logits, HostTokens(control, [(slot, slot) for slot in range(rows)]))
        if kind == "budget":
            for own in said:
                own.append(9)

    benchmark.extra_info.update(rows=rows, kind=kind, vocab=VOCAB)
    measure(step)


@pytest.fixture(scope="module")
def model():
    folder = smollm2.default_directory()
    if not (folder / "model.safetensors").is_file():
        pytest.skip("SmolLM2 is not here: run `adapt fetch-smollm2`")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("rows", ROWS)
@torch.inference_mode()
def test_model_step(model, measure, benchmark, rows):
    ids = torch.randint(100, 10_000, (rows, CACHED), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)

    def step():
        model(ids[:, :1], past_key_values=cache, logits_to_keep=1)
        cache.crop(-1)

    benchmark.extra_info.update(rows=rows, cached=CACHED)
    measure(step)
