"""A real engine on vLLM's newer model runner, by Triton's interpreter, in a process of its own."""

import os

import pytest
from asked import FILTERS, check_budgets, check_continuations, check_mixed, check_share, long_prompts, prompts

if os.environ.get("ADAPT_TEST_RUNNER") != "newer":
    pytest.skip("the newer runner needs a process of its own: `make test-vllm` starts it", allow_module_level=True)

import newer_runner

newer_runner.prepare()


@pytest.fixture(scope="module", params=[0, 3], ids=["plain", "drafted"])
def llm(request, engine, shipped):
    """With so few blocks that rows are preempted; drafted: the model drafts for itself."""
    speculation = {"method": "draft_model", "model": shipped, "num_speculative_tokens": request.param}
    made = engine(
        shipped,
        max_num_seqs=16,
        num_gpu_blocks_override=8,
        block_size=32,
        max_num_batched_tokens=64,
        **({"speculative_config": speculation} if request.param else {}),
    )
    newer_runner.mend_sampler()
    assert made.llm_engine.vllm_config.use_v2_model_runner
    return made


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_the_share_of_fast_is_exact_under_every_filter(llm, prob):
    check_share(llm, prompts(100), prob, **FILTERS)


def test_each_request_of_a_batch_gets_its_own(llm):
    check_mixed(llm, prompts(60), **FILTERS)


def test_after_its_mode_a_row_is_the_engines(llm):
    check_continuations(llm, prompts(12))


def test_budgets_are_exact_under_preemption_chunked_prefill_and_drafts(llm):
    preempted = check_budgets(llm, long_prompts(llm, 24))
    print(f"{preempted} preemptions")
    assert preempted
