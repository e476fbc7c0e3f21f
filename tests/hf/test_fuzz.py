"""The fuzzer: a fixed set of cases for every run, and every architecture for an hour (FUZZ_SECONDS) in the full one."""

import os
from collections import Counter

import pytest
from fuzz import Report, search
from fuzz_cases import draw_case
from small_configs import NOT_BUILT
from small_models import architectures

SECONDS = float(os.environ.get("FUZZ_SECONDS", 3600))
SEEDS = 12
# One or two of each kind: attention that is plain, sliding, latent, sparse, differential, with a mask of its own, with
# alibi, with learned positions; experts; recurrent and hybrid state; no cache; encoder-decoder.
QUICK = (
    *("llama", "qwen3", "gpt2", "gpt_neox", "bloom", "gemma3_text", "mimo_v2_flash", "deepseek_v3", "deepseek_v32"),
    *("glm_moe_dsa", "diffllama", "doge", "gpt_oss", "zamba", "mamba2", "falcon_h1", "qwen3_next", "recurrent_gemma"),
    *("openai-gpt", "rwkv", "xlnet", "bert", "bart", "t5"),
)


def checked(search_results, record_property) -> Report:
    """The last report; its counts go to the end of the run."""
    steps = list(search_results)
    report = steps[-1][0] if steps else Report()
    seeds = [seed for _, seed in steps] or [0]
    record_property("fuzzer", (report.cases, report.ties, seeds[0], seeds[-1]))
    assert not report.wrong, f"{len(report.wrong)} of {report.cases} cases:\n" + "\n".join(report.wrong)
    return report


@pytest.mark.parametrize("architecture", QUICK)
def test_fixed_cases(architecture, record_property):
    if architecture not in architectures():
        pytest.skip(f"this transformers has no {architecture}")
    report = checked(search([architecture], 0, SEEDS, float("inf")), record_property)
    assert report.cases >= SEEDS - 2 and not report.not_built


@pytest.mark.full
@pytest.mark.parametrize("architecture", architectures())
def test_every_architecture(architecture, record_property):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    share = SECONDS * workers / len(architectures())
    report = checked(search([architecture], SEEDS, 10**9, share), record_property)
    assert set(report.not_built) <= set(NOT_BUILT), report.not_built
    assert report.cases or architecture in NOT_BUILT


def test_fixed_cases_reach_everything():
    """Each kind of call, often enough to meet the models it goes wrong with."""
    cases = [draw_case(name, seed) for name in QUICK for seed in range(SEEDS)]
    names = ("draw", "inputs", "mask", "mask_type", "cache", "hook", "layout", "compact_at", "limit", "attention")
    for name in names:
        least = min(Counter(getattr(case, name) for case in cases).values())
        assert least >= 2, f"{name}: {Counter(getattr(case, name) for case in cases)}"
    for name in (
        "training",
        "checkpointing",
        "continued",
        "streamed",
        "stop_at",
        "row_ends",
        "eos",
        "outputs",
        "token_types",
    ):
        assert sum(bool(getattr(case, name)) for case in cases) >= 5, name
    processors = Counter(name for case in cases for name, _ in case.processors)
    assert min(processors.values()) >= 5 and len(processors) == 11
    merged = [case for case in cases if len(set(case.prompt_of_row)) < case.rows * case.samples]
    assert len(merged) > len(cases) / 3
    assert sum(case.layout == "shared" or (case.layout == "auto" and case.shares_early) for case in merged) > 40
    assert sum(not case.has_pad for case in merged) >= 5
