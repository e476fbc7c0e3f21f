"""Where requests enter an engine: what is refused with its prompt, and the seed each row gets."""

import sys
from copy import copy, deepcopy
from types import ModuleType, SimpleNamespace

import pytest
from test_runners import MULTI, PROGRAMS, served

from adapt_kernels.philox import row_seed
from adapt_kernels.serving.settings import ROW_KEY

NAMES = {
    "vllm.exceptions": {"VLLMValidationError": type("VLLMValidationError", (ValueError,), {})},
    "vllm.v1.engine.input_processor": {},
    "vllm.v1.engine.parallel_sampling": {},
    "vllm.entrypoints.openai.completion.protocol": {},
}


def params(**extra):
    """vLLM's sampling parameters; extra_args are `extra`, but for names of vLLM's own."""
    own = {
        "seed": None, "max_tokens": 16, "structured_outputs": None, "allowed_token_ids": None, "bad_words": None,
        "thinking_token_budget": None, "stop": [], "temperature": 1.0, "n": 1,
    }  # fmt: skip
    own.update((name, extra.pop(name)) for name in list(extra) if name in own)
    return SimpleNamespace(extra_args=extra or None, **own)


class InputProcessor:
    def __init__(self, config):
        self.vllm_config = config

    def process_inputs(self, request_id, prompt, params, **kwargs):
        return SimpleNamespace(prompt_token_ids=prompt, sampling_params=deepcopy(params))


class ParentRequest:
    def __init__(self, params):
        self.sampling_params = params

    def _get_child_sampling_params(self, index):
        child = copy(self.sampling_params)
        child.n, child.seed = 1, None if child.seed is None else child.seed + index
        return child


class CompletionRequest:
    model_extra = None

    def to_sampling_params(self, length):
        return length


@pytest.fixture
def entered(monkeypatch, processor):
    """(served, config changes) -> (params, prompt) -> the parameters that go on to the engine."""
    for name, names in NAMES.items():
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
    stand_ins = [
        type(each.__name__, (each,), dict(each.__dict__)) for each in (InputProcessor, ParentRequest, CompletionRequest)
    ]
    for name, cls in zip(list(NAMES)[1:], stand_ins, strict=True):
        setattr(sys.modules[name], cls.__name__, cls)
    from adapt_kernels.vllm import entrance

    entrance.guard()
    entrance.guard()  # vLLM may load plugins more than once

    def make(model, newer=True, drafts=0, asynchronous=False, processors=(), backend="uni", seed=0):
        config = SimpleNamespace(
            use_v2_model_runner=newer,
            speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
            scheduler_config=SimpleNamespace(async_scheduling=asynchronous),
            parallel_config=SimpleNamespace(distributed_executor_backend=backend),
            model_config=SimpleNamespace(get_vocab_size=lambda: 32, seed=seed, logits_processors=processors),
        )
        monkeypatch.setattr(entrance, "served_model", lambda _: model)
        front = stand_ins[0](config)
        return lambda given, prompt=(1, 10): front.process_inputs("0", list(prompt), given).sampling_params

    make.parent, make.request = stand_ins[1:]
    return make


def test_requests_without_settings_pass_as_they_are(entered):
    enter = entered(None)
    assert enter(params()).extra_args is None and enter(params(kv="x")).extra_args == {"kv": "x"}


def test_the_callers_own_settings_are_not_written_to(entered):
    enter, own = entered(served()), params(fast_prob=0.5)
    first, second = enter(own), enter(own)
    assert own.extra_args == {"fast_prob": 0.5}
    assert first.extra_args[ROW_KEY] != second.extra_args[ROW_KEY]


def test_seeds_are_the_requests_own_or_differ_in_every_process(entered):
    def seed(enter, **given):
        return enter(params(fast_prob=0.5, **given)).extra_args[ROW_KEY]

    one, two = entered(served()), entered(served())
    assert seed(one, seed=7) == seed(two, seed=7) == 7
    assert seed(one, adapt_seed=9, seed=7) == 9 and seed(one, adapt_seed=2**64 - 1) == -1
    assert len({seed(enter) for enter in (one, two) for _ in range(8)}) == 16
    # Ranks that run a scheduler each must agree.
    ranks = [entered(served(), backend="external_launcher", seed=4) for _ in range(2)]
    assert [seed(ranks[0]) for _ in range(3)] == [seed(ranks[1]) for _ in range(3)]


def test_samples_of_one_request_draw_for_themselves(entered):
    for given in ({}, {"seed": 7}, {"adapt_seed": 7}):
        parent = entered.parent(entered(served())(params(fast_prob=0.5, n=4, **given)))
        children = [parent._get_child_sampling_params(n) for n in range(4)]
        base = parent.sampling_params.extra_args[ROW_KEY]
        assert [child.extra_args[ROW_KEY] for child in children] == [row_seed(base, n) for n in range(4)]
    plain = entered.parent(params())
    assert plain._get_child_sampling_params(1).extra_args is None


def test_a_setting_beside_the_place_for_it_is_refused(entered):
    request = entered.request()
    assert request.to_sampling_params(3) == 3
    request.model_extra = {"fast_prob": 0.5}
    with pytest.raises(ValueError, match='^fast_prob: goes into "vllm_xargs"'):
        request.to_sampling_params(3)


AT_0 = {"rules": [{"force": [9], "when": {"at": 0}}]}
HOLD = {
    "spans": {"think": {"open": 6, "close": 8}},
    "rules": [{"force": [8], "when": {"in": "think", "count": [4, None]}}],
}
EARLY = {"rules": [{"force": [9], "when": {"after": 10, "times": 1}}]}
REFUSED = [
    (params(mode="fst"), (1,), {}, "^mode: must be 'auto' or one of"),
    (params(adapt_seed=3), (1,), {}, "^adapt_seed: fixes the draws of a mode or a program"),
    (params(mode="fast"), None, {}, "^mode: needs the prompt's tokens, not embeddings"),
    (params(mode="fast"), (1, 6), {}, "^mode: the prompt already ends in the tokens of mode 'slow'"),
    (params(mode_bias=1.0, structured_outputs={}), (1,), {}, "^mode_bias: a grammar .* forbids the tokens"),
    (params(program="sentence", structured_outputs={}), (1,), {}, "^program: a grammar"),
    (params(fast_prob=0.5, allowed_token_ids=[1]), (1,), {}, "^fast_prob: allowed_token_ids and bad_words"),
    (params(fast_prob=0.5, bad_words=["a"]), (1,), {}, "^fast_prob: allowed_token_ids and bad_words"),
    (params(thinking_budget=3, thinking_token_budget=3), (1,), {}, "^thinking_budget: thinking_token_budget is vLLM's"),
    (params(program="by mode"), (1,), {}, "^program: its rules ask for a mode"),
    (params(program=HOLD, stop=["x"]), (1,), {}, "^program: the engine.s stop strings do not sleep"),
    (params(program=AT_0, mode="fast"), (1,), {}, r"^program: rules\[0\] \(force\) acts at position 0"),
    (params(program=EARLY, mode="fast"), (1, 10), {}, "^program: a rule acts at position 0"),
    (params(mode="fast"), (1,), {"newer": False, "drafts": 3}, "^mode: the older model runner drops logits processors"),
    (params(thinking_budget=1), (1,), {"newer": False, "asynchronous": True}, "--logits-processors adapt_kernels.vllm"),
    (params(program="no"), (1,), {}, "^program: must be the name of a program of this server"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "prompt", "engine", "text"), REFUSED)
def test_refused_where_it_enters(entered, given, prompt, engine, text):
    enter, kept = entered(served(), **engine), deepcopy(given.extra_args)
    with pytest.raises(sys.modules["vllm.exceptions"].VLLMValidationError, match=text):
        enter(given, prompt) if prompt is not None else _embedded(enter, given)
    assert given.extra_args == kept


def _embedded(enter, given):
    front = enter.__closure__[0].cell_contents
    own = type(front).process_inputs.__wrapped__
    request = own(front, "0", None, given)
    from adapt_kernels.vllm import entrance

    return entrance._checking(lambda *_: request)(front)


@pytest.mark.parametrize("modes", [None, MULTI])
def test_taken_where_it_enters(entered, modes):
    given = [
        ({"mode": "fast"}, {}, (1,)),
        ({"mode": "slow", "thinking_budget": 0}, {}, (1,)),
        ({"program": "sentence"}, {}, (1, 6)),
        ({"program": "by mode", "mode": "slow"}, {}, (1,)),
        ({"program": "sentence", "stop": ["x"]}, {}, (1,)),
        ({"mode": "fast"}, {"newer": False, "asynchronous": True}, (1,)),
        ({"thinking_budget": 2}, {"newer": False, "asynchronous": True, "processors": ["a:ModeProcessor"]}, (1,)),
        ({"program": EARLY, "mode": "fast"}, {}, (1, 11)),
        *(({"program": name, "mode_bias": 1.0}, {"drafts": 3}, (1,)) for name in PROGRAMS),
    ]
    for own, engine, prompt in given:
        assert ROW_KEY in entered(served(modes), **engine)(params(**own), prompt).extra_args


def test_without_the_guard_settings_are_refused(processor):
    with pytest.raises(ValueError, match="^fast_prob: the vLLM plugin 'adapt_kernels' is off"):
        processor.ModeProcessor.validate_params(params(fast_prob=0.5))
    processor.ModeProcessor.validate_params(params(kv=1))
    with pytest.raises(ValueError, match="^fastprob: unknown setting"):
        processor.ModeProcessor.validate_params(params(fastprob=0.5))


def test_under_a_vllm_that_it_does_not_know_the_guard_stays_off(processor, monkeypatch):
    from adapt_kernels.vllm import entrance

    for name in list(NAMES)[1:3]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    entrance.guard()
    assert not entrance.is_on()


def test_with_the_guard_they_pass_to_it(entered, processor):
    processor.ModeProcessor.validate_params(params(fast_prob=0.5))
