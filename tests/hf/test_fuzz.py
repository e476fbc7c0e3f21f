"""The fuzzer: a fixed set of cases for every run, and every architecture for an hour (FUZZ_SECONDS) in the full one."""

import itertools
import os
from collections import Counter

import pytest
from fuzz import Report, search
from fuzz_cases import DRAWS, Case, draw_case
from small_configs import NOT_BUILT
from small_models import architectures

SECONDS = float(os.environ.get("FUZZ_SECONDS", 3600))
SEEDS = 8
# One or two of each kind: attention that is plain, sliding, latent, sparse, differential, with a mask of its own, with
# alibi, with learned positions; experts; recurrent and hybrid state; no cache; encoder-decoder.
QUICK = (
    *("llama", "qwen3", "gpt2", "gpt_neox", "bloom", "gemma3_text", "mimo_v2_flash", "deepseek_v3", "deepseek_v32"),
    *("glm_moe_dsa", "diffllama", "doge", "gpt_oss", "zamba", "mamba2", "falcon_h1", "qwen3_next", "recurrent_gemma"),
    *("openai-gpt", "rwkv", "xlnet", "bert", "bart", "t5"),
)


def merges(case: Case) -> bool:
    """Whether rows share prompts."""
    return len(set(case.prompt_of_row)) < case.rows * case.samples


def branches(case: Case, hook: str | None = None, training: bool = False) -> bool:
    """Whether rows share prompts in a call of some length that plan "full" takes, but for a hook or training."""
    plain = case.draw in ("greedy", "top_k_1") and case.inputs == "input_ids" and case.mask == "left"
    kept = case.outputs or case.cache or not case.use_cache
    large = case.rows > 2 and case.new > 6
    return merges(case) and large and plain and not kept and (case.hook, case.training) == (hook, training)


def interleaved(case: Case) -> bool:
    """Whether equal prompts stand apart."""
    return case.prompt_of_row != tuple(sorted(case.prompt_of_row))


# What each of these architectures meets at least once.
KINDS = (
    *((lambda case, draw=draw: case.draw == draw) for draw in dict.fromkeys(DRAWS)),
    lambda case: branches(case, hook="rows"),
    lambda case: branches(case, training=True) and not case.checkpointing,
    lambda case: case.checkpointing,
    lambda case: case.continued and case.eos,
    lambda case: branches(case) and not case.has_pad and interleaved(case) and case.layout != "shared",
    lambda case: branches(case) and case.layout == "shared",
    lambda case: branches(case) and case.layout == "auto" and case.shares_early and case.width > 6,
)


def fixed_seeds(architecture: str) -> list[int]:
    """The first seeds, and of each kind that they lack the first one that has it."""
    seeds = list(range(SEEDS))
    for kind in KINDS:
        if not any(kind(draw_case(architecture, seed)) for seed in seeds):
            seeds.append(next(seed for seed in itertools.count(SEEDS) if kind(draw_case(architecture, seed))))
    return seeds


def checked(search_results, record_property) -> Report:
    """The last report; its counts go to the end of the run."""
    steps = list(search_results)
    report = steps[-1][0] if steps else Report()
    seeds = [seed for _, seed in steps] or [0]
    record_property("fuzzer", (report.cases, report.ties, min(seeds), max(seeds)))
    assert not report.wrong, f"{len(report.wrong)} of {report.cases} cases:\n" + "\n".join(report.wrong)
    return report


@pytest.mark.parametrize("architecture", QUICK)
def test_fixed_cases(architecture, record_property):
    if architecture not in architectures():
        pytest.skip(f"this transformers has no {architecture}")
    report = checked(search([architecture], fixed_seeds(architecture)), record_property)
    assert report.cases >= SEEDS and not report.not_built


@pytest.mark.full
@pytest.mark.parametrize("architecture", architectures())
def test_every_architecture(architecture, record_property):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    share = SECONDS * workers / len(architectures())
    report = checked(search([architecture], itertools.count(), share), record_property)
    assert set(report.not_built) <= set(NOT_BUILT), report.not_built
    assert report.cases or architecture in NOT_BUILT


def test_fixed_cases_reach_everything():
    cases = [draw_case(name, seed) for name in QUICK for seed in fixed_seeds(name)]
    for name in ("inputs", "mask", "mask_type", "cache", "layout", "compact_at", "limit", "attention"):
        seen = Counter(getattr(case, name) for case in cases)
        assert min(seen.values()) >= 2, f"{name}: {seen}"
    flags = ("training", "continued", "streamed", "stop_at", "row_ends", "eos", "outputs", "token_types", "positions")
    for name in (*flags, "kv_tokens"):
        assert sum(bool(getattr(case, name)) for case in cases) >= 5, name
    processors = Counter(name for case in cases for name, _ in case.processors)
    assert min(processors.values()) >= 5 and len(processors) == 11
    assert sum(map(merges, cases)) > len(cases) / 3
