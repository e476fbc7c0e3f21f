"""SmolLM2-135M, real logits, on vLLM's older runner: the share of a mode is exact under every filter."""

import os

import pytest
from asked import FILTERS, PENALTIES, check_share

from adapt_kernels import Modes


@pytest.fixture(scope="module")
def llm(engine, tmp_path_factory):
    from adapt_recipes.smollm2 import fetch

    folder, modes = fetch(None), tmp_path_factory.mktemp("modes")
    fast, slow = _words(folder)
    Modes(fast=fast, slow=slow).save_pretrained(modes)
    os.environ["ADAPT_KERNELS_MODES"] = str(modes)
    yield engine(str(folder), max_model_len=128, max_num_seqs=32), (fast, slow)
    del os.environ["ADAPT_KERNELS_MODES"]


def _words(folder) -> tuple[int, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    [[fast], [slow]] = (tokenizer.encode(word, add_special_tokens=False) for word in ("The", "First"))
    return fast, slow


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_the_share_of_fast_is_exact_under_every_filter(llm, prob):
    made, modes = llm
    questions = [f"What is {n} plus {n % 7}?" for n in range(300)]
    check_share(made, questions, prob, modes, **FILTERS, **PENALTIES)
