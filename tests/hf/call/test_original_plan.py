"""What stays Hugging Face's own loop: same output, plan and reason recorded, mode arguments refused beforehand."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from recorders import RecordingStreamer, forward_calls
from tiny_models import EOS, FAST, PAD, SLOW, build, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 6, 8


def assistant():
    return build("llama", seed=9, num_hidden_layers=1)


def repeat_last_token(model, input_ids, generation_config, **kwargs):
    """A decoding loop of the user's own."""
    return torch.cat([input_ids, input_ids[:, -1:].expand(-1, generation_config.max_new_tokens)], 1)


def twice_greedy(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """A user's loop that calls the model's own `_sample`."""
    return type(model)._sample(
        model, input_ids, logits_processor, stopping_criteria, generation_config=generation_config, **kwargs
    )


# Name -> (model, words of the reason, rows, generate arguments).
CASES = {
    "beams": ("llama", "beam search has its own decoding loop", 2, lambda: {"num_beams": 3}),
    "beam sample": (
        *("llama", "beam sample has its own decoding loop", 2),
        lambda: {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    ),
    "assisted": (
        *("llama", "assisted generation has its own decoding loop", 1),
        lambda: {"assistant_model": assistant()},
    ),
    "assisted sample": (
        *("llama", "assisted generation has its own decoding loop", 1),
        lambda: {"assistant_model": assistant(), "do_sample": True},
    ),
    "patched assistant": (
        *("llama", "assisted generation has its own decoding loop", 1),
        lambda: {"assistant_model": ak.patch(assistant(), MODES)},
    ),
    "prompt lookup": (
        *("llama", "assisted generation has its own decoding loop", 1),
        lambda: {"prompt_lookup_num_tokens": 2},
    ),
    "custom loop": ("llama", "custom_generate replaces", 2, lambda: {"custom_generate": repeat_last_token}),
    "custom loop on ours": ("llama", "custom_generate replaces", 2, lambda: {"custom_generate": twice_greedy}),
    "t5": ("t5", "encoder-decoder model", 2, lambda: {}),
    "t5 sample": ("t5", "encoder-decoder model", 2, lambda: {"do_sample": True, "num_return_sequences": 2}),
    "bart": ("bart", "encoder-decoder model", 2, lambda: {}),
    "bart beams": ("bart", "beam search has its own decoding loop", 2, lambda: {"num_beams": 2}),
    "synced": ("llama", "all ranks must run the same number of forwards", 2, lambda: {"synced_gpus": True}),
}


@pytest.fixture(scope="module", autouse=True)
def group_of_one():
    """`synced_gpus` asks the process group after every step."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def generate(model, rows, extra, **arguments):
    torch.manual_seed(1)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **extra, **arguments}
    return model.generate(prompts(rows, WIDTH), **arguments)


@pytest.mark.parametrize("name", CASES)
def test_output_is_huggingfaces_and_the_reason_is_kept(name):
    architecture, reason, rows, extra = CASES[name]
    model = shared(architecture)
    expected = generate(model, rows, extra())
    with ak.patched(model, MODES):
        assert torch.equal(generate(model, rows, extra()), expected)
        stats = ak.last_stats(model)
    assert stats.plan == "original" and reason in stats.reason
    assert (stats.row_steps, stats.prefill_tokens, stats.kv_bytes_peak) == (None, None, None)


@pytest.mark.parametrize("name", [name for name in CASES if name != "custom loop"])
def test_rich_output(name):
    architecture, _, rows, extra = CASES[name]
    model = shared(architecture)
    rich = {"return_dict_in_generate": True, "output_scores": True}
    expected = generate(model, rows, extra(), **rich)
    with ak.patched(model, MODES):
        got = generate(model, rows, extra(), **rich)
        assert got.stats == ak.last_stats(model)
    assert type(got).__name__ == type(expected).__name__
    assert torch.equal(got.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(got.scores, expected.scores, strict=True))
    assert got.mode_probs is None and len(got.modes) == len(got.sequences)


def test_modes_are_read_off_the_new_tokens():
    model, ids = shared("llama"), prompts(4, WIDTH)
    first = model.generate(ids, max_new_tokens=NEW, num_beams=2, eos_token_id=None)[:, WIDTH].tolist()
    with ak.patched(model, ak.Modes(fast=first[0], slow=first[1])):
        out = model.generate(ids, max_new_tokens=NEW, num_beams=2, eos_token_id=None, return_dict_in_generate=True)
    expected = [0 if t == first[0] else 1 if t == first[1] else -1 for t in first]
    assert out.modes.tolist() == expected and len(set(expected)) > 1


ARGUMENTS = {
    "mode": {"mode": "fast"},
    "auto": {"mode": "auto"},
    "mode_bias": {"mode_bias": 0.0},
    "fast_prob": {"fast_prob": 0.5},
    "seed": {"seed": 3},
    "return_logprobs": {"return_logprobs": True},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("knob", ARGUMENTS)
def test_mode_arguments_are_refused_before_anything_runs(name, knob):
    architecture, reason, rows, extra = CASES[name]
    streamer = RecordingStreamer()
    streamed = {} if "beam" in name else {"streamer": streamer}
    argument = next(iter(ARGUMENTS[knob]))
    with ak.patched(shared(architecture), MODES) as model, forward_calls(model) as calls:
        with pytest.raises(ValueError, match=rf"{argument} cannot be honoured by this call: .*{reason}"):
            generate(model, rows, extra(), **ARGUMENTS[knob], **streamed)
        assert ak.last_stats(model) is None
    assert calls == [] and streamer.calls == []


def test_encoders_do_not_run_either():
    with (
        ak.patched(shared("t5"), MODES) as model,
        forward_calls(model.encoder) as calls,
        pytest.raises(ValueError, match="cannot be honoured"),
    ):
        generate(model, 2, {}, mode="slow")
    assert calls == []


def test_continuous_batching_is_refused():
    with (
        ak.patched(shared("llama"), MODES) as model,
        forward_calls(model) as calls,
        pytest.raises(ValueError, match="mode cannot be honoured by this call: .*continuous batching"),
    ):
        generate(model, 2, {"cache_implementation": "paged"}, mode="slow")
    assert calls == []


def test_a_mode_limit_is_refused_too():
    modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=2), slow=SLOW)
    with (
        ak.patched(shared("llama"), modes) as model,
        forward_calls(model) as calls,
        pytest.raises(ValueError, match="Mode.max_new_tokens of 'fast' cannot be honoured by this call"),
    ):
        generate(model, 2, {"num_beams": 2})
    assert calls == []


def test_huggingface_sampler_may_be_named():
    model = shared("llama")
    expected = generate(model, 2, {"num_beams": 2, "do_sample": True})
    with ak.patched(model, MODES):
        assert torch.equal(generate(model, 2, {"num_beams": 2, "do_sample": True}, rng="hf"), expected)


def test_patched_assistant_reports_that_it_drafts():
    helper, model = ak.patch(assistant(), MODES), shared("llama")
    expected = generate(model, 1, {"assistant_model": assistant()})
    assert torch.equal(generate(model, 1, {"assistant_model": helper}), expected)
    assert ak.last_stats(helper).plan == "original"
    assert "drafting" in ak.last_stats(helper).reason


def test_a_patched_model_may_draft_for_itself():
    # Its own nested calls must not be taken for the outer one.
    with ak.patched(build("llama"), MODES) as model:
        expected = generate(shared("llama"), 1, {})
        assert torch.equal(generate(model, 1, {"assistant_model": model}), expected)


def test_a_loop_of_the_models_own_class():
    class OwnLoop(type(shared("llama"))):
        def _sample(self, input_ids, *args, **kwargs):
            return super()._sample(input_ids, *args, **kwargs)

    model = build("llama")
    model.__class__ = OwnLoop
    expected = generate(model, 2, {})
    with ak.patched(model, MODES):
        assert torch.equal(generate(model, 2, {}), expected)
        assert "OwnLoop has its own sampling loop" in ak.last_stats(model).reason
        with pytest.raises(ValueError, match="own sampling loop"):
            generate(model, 2, {}, mode="fast")


def test_a_generate_of_the_models_own_class():
    class OwnGenerate(type(shared("llama"))):
        def generate(self, inputs, style=None, **kwargs):
            return super().generate(inputs, **kwargs)

    model = build("llama")
    model.__class__ = OwnGenerate
    expected = generate(model, 2, {"style": "plain"})
    with ak.patched(model, MODES), forward_calls(model) as calls:
        assert torch.equal(generate(model, 2, {"style": "plain"}), expected)
        assert ak.last_stats(model).reason == "OwnGenerate has its own generate"
        calls.clear()
        with pytest.raises(ValueError, match="fast_prob cannot be honoured by this call: OwnGenerate has its own"):
            generate(model, 2, {"style": "plain"}, fast_prob=0.5)
    assert calls == []


def test_stop_strings_in_an_original_plan():
    model, tokenizer = shared("llama"), char_tokenizer()
    free = generate(model, 1, {"num_beams": 2})
    stop = tokenizer.decode(free[0, WIDTH + 2 : WIDTH + 4])
    arguments = {"num_beams": 2, "stop_strings": [stop], "tokenizer": tokenizer, "eos_token_id": EOS}
    expected = generate(model, 1, arguments, pad_token_id=PAD)
    with ak.patched(model, MODES):
        assert torch.equal(generate(model, 1, arguments, pad_token_id=PAD), expected)


def test_loops_that_moved_out_of_transformers_fail_as_before():
    model, arguments = shared("llama"), {"penalty_alpha": 0.6, "top_k": 4}
    with pytest.raises(ValueError) as theirs:
        generate(model, 2, arguments)
    with ak.patched(model, MODES), pytest.raises(ValueError) as ours:
        generate(model, 2, arguments)
    assert str(ours.value) == str(theirs.value)
