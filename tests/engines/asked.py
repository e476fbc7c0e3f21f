"""What the tests of both runners ask of an engine of the shipped checkpoint, and what they check."""

import math

from adapt_kernels.philox import row_seed

FAST, SLOW, CLOSE, EOS = 26, 27, 28, 2
FILTERS = {"temperature": 0.7, "top_p": 0.9, "top_k": 20}
PENALTIES = {"min_p": 0.1, "repetition_penalty": 1.3, "frequency_penalty": 0.2}
MIXED = [{"mode": "fast"}, {"mode": "slow"}, {}, {"mode_bias": 60.0}, {"mode_bias": -60.0}, {"fast_prob": 0.5}]
BUDGETS = (0, 3, 6, None)


def prompts(count: int, seed: int = 1) -> list[str]:
    import adapt_recipes as ar

    return [problem.prompt for problem in ar.problems(count, seed=seed)]


def params(settings, **own):
    from vllm import SamplingParams

    return SamplingParams(extra_args=dict(settings) or None, **{"max_tokens": 1, **own})


def said(llm, given, asked) -> list[list[int]]:
    """The tokens of each request."""
    return [list(out.outputs[0].token_ids) for out in llm.generate(given, asked, use_tqdm=False)]


def check_share(llm, given, prob: float, modes=(FAST, SLOW), **sampling) -> None:
    """P(fast) within three standard errors, whatever the sampler is told to do."""
    settings = [{"fast_prob": prob, "adapt_seed": row_seed(17, n)} for n in range(len(given))]
    tokens = [own[0] for own in said(llm, given, [params(each, **sampling) for each in settings])]
    assert set(tokens) <= set(modes)
    share, error = tokens.count(modes[0]) / len(tokens), math.sqrt(prob * (1 - prob) / len(tokens))
    print(f"P = {prob}: {share:.3f} of {len(tokens)}, 3 s.e. {3 * error:.3f}")
    assert abs(share - prob) <= 3 * error


def check_mixed(llm, given, **sampling) -> None:
    """Each request of one batch gets its own."""
    asked = [MIXED[n % len(MIXED)] for n in range(len(given))]
    tokens = [own[0] for own in said(llm, given, [params(each, **sampling) for each in asked])]
    wanted = {0: {FAST}, 1: {SLOW}, 3: {FAST}, 4: {SLOW}, 5: {FAST, SLOW}}
    for n, token in enumerate(tokens):
        assert token in wanted.get(n % len(MIXED), {token}), (n, asked[n], token)


def check_continuations(llm, given) -> None:
    """After its mode a row says what the engine says of itself from there."""
    greedy = {"temperature": 0.0, "max_tokens": 16}
    for mode, token in (("fast", FAST), ("slow", SLOW)):
        steered = said(llm, given, [params({"mode": mode}, **greedy)] * len(given))
        tokenizer = llm.get_tokenizer()
        begun = [{"prompt_token_ids": [*tokenizer(each)["input_ids"], token]} for each in given]
        rest = said(llm, begun, [params({}, temperature=0.0, max_tokens=15)] * len(given))
        assert [own[1:] for own in steered] == rest
        assert {own[0] for own in steered} == {token}


def long_prompts(llm, count: int) -> list[dict]:
    """Prompts that end a few tokens before a block of 32 is full: their rows need another one in the middle."""
    tokenizer = llm.get_tokenizer()
    ids = [tokenizer(each)["input_ids"] for each in prompts(count, seed=9)]
    return [{"prompt_token_ids": [24] * (30 - len(each)) + each} for each in ids]


def preemptions(llm) -> int:
    """Of this engine so far."""
    return int(sum(each.value for each in llm.get_metrics() if each.name == "vllm:num_preemptions"))


def check_budgets(llm, given) -> int:
    """A thought of at most so many tokens, exactly, and otherwise the engine's own; how often rows were preempted."""
    before, greedy = preemptions(llm), {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
    asked = [BUDGETS[n % len(BUDGETS)] for n in range(len(given))]
    settings = [{"mode": "slow", **({} if n is None else {"thinking_budget": n})} for n in asked]
    steered = said(llm, given, [params(each, **greedy) for each in settings])
    free = said(llm, given, [params({"mode": "slow"}, **greedy)] * len(given))
    happened, cut = preemptions(llm) - before, []
    for prompt, budget, own, model in zip(given, asked, steered, free, strict=True):
        thought = (model.index(CLOSE) if CLOSE in model else len(model)) - 1
        if budget is None or thought <= budget:
            assert own == model
        else:
            assert own[: budget + 2] == [*model[: budget + 1], CLOSE]
            cut.append((_ids(llm, prompt) + own[: budget + 2], own[budget + 2 :]))
    assert len(cut) >= len(given) // 4
    # Once closed, a row is the engine's; one that thinks again is cut again.
    once = [(begun, rest) for begun, rest in cut if rest and SLOW not in rest]
    asked = [params({}, **{**greedy, "max_tokens": len(rest)}) for _, rest in once]
    assert said(llm, [{"prompt_token_ids": begun} for begun, _ in once], asked) == [rest for _, rest in once]
    assert once
    return happened


def _ids(llm, prompt) -> list[int]:
    return list(prompt["prompt_token_ids"]) if isinstance(prompt, dict) else llm.get_tokenizer()(prompt)["input_ids"]
