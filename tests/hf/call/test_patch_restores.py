"""patch and unpatch: what changes on the model, and that nothing is left behind."""

import gc
import weakref

import pytest
import torch
from recorders import CallbackStreamer, RaisingCriterion, RaisingProcessor
from tiny_models import FAST, SLOW, VOCAB, build, prompts
from transformers import LlamaForCausalLM, Qwen3ForCausalLM
from transformers.generation.utils import GenerationMixin

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
OTHER = ak.Modes(fast=SLOW, slow=FAST)
WIDTH = 6


def greedy(model, **arguments):
    return model.generate(prompts(3, WIDTH, seed=1), max_new_tokens=5, do_sample=False, eos_token_id=None, **arguments)


def snapshot(model):
    """Everything unpatch must give back; values are compared by identity, so mutable ones are copied as well."""
    attributes = {k: dict(v) if isinstance(v, dict) else v for k, v in model.__dict__.items()}
    return {
        "class": type(model),
        "keys": list(model.__dict__),
        "attributes": attributes,
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
    }


def assert_restored(model, before):
    after = snapshot(model)
    assert after["class"] is before["class"]
    assert after["keys"] == before["keys"]
    for name, value in before["attributes"].items():
        now = after["attributes"][name]
        assert now == value if isinstance(value, dict) else now is value, name
    assert after["config"] == before["config"]
    assert after["generation_config"] == before["generation_config"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba", "t5"])
def test_unpatch_restores_everything(architecture):
    model = build(architecture)
    first = greedy(model)
    logits = model(prompts(2, WIDTH)).logits if architecture != "t5" else None
    before = snapshot(model)
    ak.patch(model, MODES)
    ak.unpatch(model)
    assert_restored(model, before)
    ak.patch(model, MODES)
    if architecture != "t5":
        greedy(model, mode="slow")
        model.generate(prompts(2, WIDTH), max_new_tokens=3, fast_prob=0.5, seed=1, do_sample=True)
    greedy(model)
    ak.unpatch(model)
    assert_restored(model, before)
    assert torch.equal(greedy(model), first)
    if logits is not None:
        assert torch.equal(model(prompts(2, WIDTH)).logits, logits)


@pytest.mark.parametrize(
    "failing", ["processor", "processor later", "criterion", "streamer", "argument", "banned modes"]
)
def test_unpatch_restores_everything_after_an_exception(failing):
    model = build("llama")
    first = greedy(model)
    before = snapshot(model)

    def fail():
        raise RuntimeError("a streamer failed")

    arguments = {
        "processor": {"logits_processor": [RaisingProcessor(0)]},
        "processor later": {"logits_processor": [RaisingProcessor(3)], "mode": "slow"},
        "criterion": {"stopping_criteria": [RaisingCriterion()], "mode": "auto"},
        "streamer": {"streamer": CallbackStreamer(fail)},
        "argument": {"no_such_argument": 1},
        "banned modes": {"mode": "auto", "suppress_tokens": [FAST, SLOW]},
    }[failing]
    ak.patch(model, MODES)
    with pytest.raises((RuntimeError, ValueError)):
        greedy(model, **arguments)
    assert torch.equal(greedy(model), first), "the patched model must go on working"
    assert (greedy(model, mode="slow")[:, WIDTH] == SLOW).all()
    ak.unpatch(model)
    assert_restored(model, before)
    assert torch.equal(greedy(model), first)


def test_patch_changes_only_the_class():
    model = build("llama")
    before = snapshot(model)
    assert ak.patch(model, MODES) is model
    after = snapshot(model)
    assert after["keys"] == before["keys"]
    assert isinstance(model, LlamaForCausalLM) and not isinstance(model, Qwen3ForCausalLM)
    cls = type(model)
    assert cls is not LlamaForCausalLM and issubclass(cls, LlamaForCausalLM)
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (
        *("LlamaForCausalLM", "LlamaForCausalLM", LlamaForCausalLM.__module__),
    )
    assert cls.config_class is LlamaForCausalLM.config_class


def test_huggingface_is_untouched():
    before = {cls: dict(vars(cls)) for cls in (GenerationMixin, LlamaForCausalLM)}
    with ak.patched(build("llama"), MODES) as model:
        greedy(model, mode="fast")
    assert {cls: dict(vars(cls)) for cls in before} == before


def test_patching_twice_with_equal_modes_does_nothing():
    model = ak.patch(build("llama"), MODES)
    cls = type(model)
    assert ak.patch(model, ak.Modes(fast=FAST, slow=SLOW)) is model
    assert type(model) is cls
    ak.unpatch(model)
    assert type(model) is LlamaForCausalLM, "one unpatch undoes it"


def test_other_modes_need_unpatch_first():
    model = ak.patch(build("llama"), MODES)
    with pytest.raises(ValueError, match=r"patched with Modes\(fast=5, slow=6\); call unpatch\(model\) before"):
        ak.patch(model, OTHER)
    assert (greedy(model, mode="fast")[:, WIDTH] == FAST).all()
    ak.unpatch(model)
    ak.patch(model, OTHER)
    assert (greedy(model, mode="fast")[:, WIDTH] == SLOW).all()


def test_unpatch_of_an_unpatched_model_does_nothing():
    model = build("llama")
    before = snapshot(model)
    assert ak.unpatch(model) is None
    assert_restored(model, before)


def test_patched_restores_after_an_exception():
    model = build("llama")
    with pytest.raises(KeyError), ak.patched(model, MODES) as same:
        assert same is model
        raise KeyError("inside")
    assert type(model) is LlamaForCausalLM


def test_patched_leaves_a_patched_model_patched():
    model = ak.patch(build("llama"), MODES)
    with ak.patched(model, MODES):
        pass
    assert (greedy(model, mode="slow")[:, WIDTH] == SLOW).all()
    with pytest.raises(ValueError, match="call unpatch"), ak.patched(model, OTHER):
        pass
    assert (greedy(model, mode="slow")[:, WIDTH] == SLOW).all()


def test_a_second_model_of_the_class_is_unaffected():
    first, second = build("llama"), build("llama")
    ak.patch(first, MODES)
    assert type(second) is LlamaForCausalLM
    with pytest.raises(ValueError, match="mode"):
        greedy(second, mode="slow")
    ak.patch(second, OTHER)
    assert greedy(first, mode="fast")[0, WIDTH] == FAST
    assert greedy(second, mode="fast")[0, WIDTH] == SLOW
    ak.unpatch(first)
    assert greedy(second, mode="fast")[0, WIDTH] == SLOW


def test_last_stats_needs_a_patched_model():
    model = build("llama")
    with pytest.raises(ValueError, match=r"not patched: call adapt_kernels.patch\(model, modes\) first"):
        ak.last_stats(model)
    with ak.patched(model, MODES):
        greedy(model)
    with pytest.raises(ValueError, match="not patched"):
        ak.last_stats(model)


@pytest.mark.parametrize("unpatched_first", [False, True])
def test_a_patched_model_can_be_collected(unpatched_first):
    model = ak.patch(build("llama"), MODES)
    greedy(model, mode="slow")
    model.generate(prompts(1, WIDTH), max_new_tokens=3, num_beams=2)
    if unpatched_first:
        ak.unpatch(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_unpatch_refuses_a_class_changed_by_someone_else():
    model = ak.patch(build("llama"), MODES)
    patched_class = type(model)

    class Wrapped(patched_class):
        pass

    model.__class__ = Wrapped
    with pytest.raises(RuntimeError, match="class was changed to .*Wrapped after patch; undo that change first"):
        ak.unpatch(model)
    assert type(model) is Wrapped
    model.__class__ = patched_class
    ak.unpatch(model)
    assert type(model) is LlamaForCausalLM


def test_ids_must_be_in_the_vocabulary():
    model = build("llama")
    before = snapshot(model)
    for outside in (VOCAB, (7, 8, VOCAB + 3)):
        with pytest.raises(
            ValueError, match=r"mode 'slow': token id \d+ is outside the model's vocabulary of 97;.*resize"
        ):
            ak.patch(model, ak.Modes(fast=(7, 9) if isinstance(outside, tuple) else 9, slow=outside))
    assert_restored(model, before)
    ak.patch(model, ak.Modes(fast=VOCAB - 2, slow=VOCAB - 1))
    assert (greedy(model, mode="fast")[:, WIDTH] == VOCAB - 2).all()
