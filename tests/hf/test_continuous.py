"""Continuous batching: each request its own mode, budget and program, whatever the batch and the cache do."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.generation.continuous_batching import requests

from adapt_kernels import Modes, Program, Span, patched, row_seed
from adapt_kernels.hf.continuous import continuous_manager

MODES = Modes(fast=3, slow=4)
THINK = {"think": Span(4, 5)}
VOCAB = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.5, eos_token_id=VOCAB - 1,
        pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
GREEDY = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}


PAGE = "page_size" if hasattr(ContinuousBatchingConfig(), "page_size") else "block_size"


def manager_of(model, pages=128, own=None, **generation):
    """A manager over a cache of so many pages of 16 tokens."""
    ends = {"eos_token_id": VOCAB - 1, "pad_token_id": 0, "max_new_tokens": 8}
    config = GenerationConfig(**{**ends, **(own or GREEDY), **generation})
    cache = {PAGE: 16, "num_blocks": pages, "max_batch_tokens": 64, "max_requests_per_batch": 64}
    return continuous_manager(model, MODES, spans=THINK, generation_config=config, **cache)


def served(model, requests, own=None, pages=128):
    """[(tokens, error)] of requests (ids, keywords), in order."""
    manager = manager_of(model, pages, own)
    manager.start()
    try:
        for number, (ids, keywords) in enumerate(requests):
            manager.add_request(ids, request_id=f"r{number}", **keywords)
        found = {}
        while len(found) < len(requests):
            result = manager.get_result(timeout=120)
            assert result is not None and manager.is_running(), "the manager stopped"
            found[result.request_id] = (list(result.generated_tokens), result.error)
    finally:
        manager.stop(block=True)
    return [found[f"r{number}"] for number in range(len(requests))]


def prompts(count, low=3, high=9):
    draws = torch.Generator().manual_seed(1)
    lengths = torch.randint(low, high, (count,), generator=draws).tolist()
    return [torch.randint(6, VOCAB - 1, (length,), generator=draws).tolist() for length in lengths]


def alone(model, ids, **keywords):
    """What `generate` says of one prompt."""
    keywords["seed"] = keywords.pop("adapt_seed", None)
    with patched(model, MODES, spans=THINK):
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=keywords.pop("max_new_tokens", 8), do_sample=False,
            eos_token_id=VOCAB - 1, pad_token_id=0, **{k: v for k, v in keywords.items() if v is not None},
        )  # fmt: skip
    said = out[0, len(ids) :].tolist()
    return said[: said.index(VOCAB - 1) + 1] if VOCAB - 1 in said else said


def test_the_share_of_fast_is_exact_under_every_filter(model):
    for prob in (0.1, 0.5, 0.9):
        count = 400
        asked = [
            (ids, {"fast_prob": prob, "adapt_seed": row_seed(5, n), "max_new_tokens": 1})
            for n, ids in enumerate(prompts(count))
        ]
        tokens = [said[0] for said, _ in served(model, asked, SAMPLING)]
        assert set(tokens) == {3, 4}
        assert abs(tokens.count(3) / count - prob) < 3 * (prob * (1 - prob) / count) ** 0.5


def test_each_request_of_a_batch_gets_its_own(model):
    kinds = [{"mode": "fast"}, {"mode": "slow"}, {"mode_bias": 90.0}, {"mode_bias": -90.0}, {}]
    asked = [(ids, {**kinds[n % 5], "max_new_tokens": 2}) for n, ids in enumerate(prompts(40))]
    plain = served(model, [(ids, {"max_new_tokens": 2}) for ids, _ in asked])
    for n, (said, error) in enumerate(served(model, asked)):
        assert error is None
        assert said[0] == {0: 3, 1: 4, 2: 3, 3: 4}.get(n % 5, plain[n][0][0])
        assert n % 5 != 4 or said == plain[n][0]


PROGRAM = Program.from_dict(
    {
        "spans": {"think": {"open": 4, "close": 5}},
        "rules": [
            {"force": [7, 8, 5], "when": {"in": "think", "count": [4, None]}},
            {"bias": list(range(20, 40)), "by": "ban", "when": {"in": "think"}},
        ],
    }
)


@pytest.mark.parametrize("tight", [False, True], ids=["room", "soft resets"])
def test_greedy_rows_say_what_generate_says(model, tight, monkeypatch):
    """With so few pages, requests are thrown out and computed anew."""
    settings = [
        *({"mode": "slow", "thinking_budget": n} for n in (0, 3, 6)),
        {"mode": "slow", "program": PROGRAM}, {"mode": "fast"}, {"thinking_budget": 2}, {"fast_prob": 0.5}, {},
    ]  # fmt: skip
    asked = [
        (ids, {**settings[n % len(settings)], "adapt_seed": n, "max_new_tokens": 14})
        for n, ids in enumerate(prompts(16))
    ]
    for _, keywords in asked:
        if set(keywords) == {"adapt_seed", "max_new_tokens"}:
            del keywords["adapt_seed"]
    resets, reset = [], requests.RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        requests.RequestState, "create_equivalent_initial_request", lambda state: resets.append(1) or reset(state)
    )
    found = served(model, asked, pages=12 if tight else 128)
    assert bool(resets) == tight
    for (ids, keywords), (said, error) in zip(asked, found, strict=True):
        assert error is None
        assert said == alone(model, ids, **keywords), keywords


REFUSED = [
    ({"mode": "fst"}, "^mode: must be 'auto' or one of"),
    ({"fastprob": 0.5}, "^fastprob: unknown setting, did you mean fast_prob"),
    ({"fast_prob": 2.0}, "^fast_prob: must be a number inside"),
    ({"program": "none"}, "^program: must be the name"),
    ({"program": Program.from_dict({"rules": [{"sample": {"temperature": 1.0}}]})}, "the engine's own sampler"),
    ({"adapt_seed": 3}, "fixes the draws of a mode or a program"),
]


@pytest.mark.parametrize(("keywords", "text"), REFUSED)
def test_refused_at_once_and_by_name(model, keywords, text):
    manager = manager_of(model)
    with pytest.raises(ValueError, match=text):
        manager.add_request([6, 7], **keywords)
    with pytest.raises(ValueError, match="the prompt already ends in the tokens of mode 'slow'"):
        manager.add_request([6, 4], mode="fast")


@pytest.mark.parametrize(
    "config", [{"use_async_batching": True}, {"use_cuda_graph": True}, {"per_request_processors": False}]
)
def test_configurations_that_would_drop_settings_are_refused(model, config):
    with pytest.raises(ValueError, match=f"^{next(iter(config))}="):
        continuous_manager(model, MODES, **config)


@pytest.mark.full  # Hugging Face takes a minute to begin with several samples
def test_samples_of_a_request_draw_for_themselves(model):
    generation = GenerationConfig(
        max_new_tokens=1, num_return_sequences=32, eos_token_id=VOCAB - 1, pad_token_id=0, **SAMPLING
    )
    manager = continuous_manager(model, MODES, generation_config=generation)
    manager.start()
    try:
        manager.add_request([6, 7, 8], fast_prob=0.5, adapt_seed=1)
        tokens = [manager.get_result(timeout=120).generated_tokens[0] for _ in range(8)]
    finally:
        manager.stop(block=True)
    assert set(tokens) == {3, 4} and len(tokens) == 8


def test_the_model_is_left_as_it_was(model):
    before = dict(vars(model))
    manager = manager_of(model)
    assert set(vars(model)) - set(before) <= {"_cached_continuous_batching_manager"}
    assert "_get_logits_processor" not in vars(model) and manager is not None
