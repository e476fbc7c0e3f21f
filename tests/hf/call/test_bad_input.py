"""Bad arguments: each a clear error, raised before the model or the streamer is touched."""

import pytest
import torch
from recorders import CallbackStreamer, RecordingStreamer, forward_calls
from tiny_models import FAST, SLOW, VOCAB, build, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
NAN, INF = float("nan"), float("inf")


def assert_refused(error, text, ids=None, touches_streamer=False, **arguments):
    """`generate` raises `error` with `text`, and nothing was computed, streamed or drawn."""
    model, streamer = shared("llama"), RecordingStreamer()
    ids = prompts(2, 6) if ids is None else ids
    before = torch.get_rng_state()
    with ak.patched(model, MODES), forward_calls(model) as calls:
        with pytest.raises(error, match=text):
            model.generate(ids, **{"max_new_tokens": 3, "streamer": streamer, **arguments})
        assert ak.last_stats(model) is None
    assert calls == []
    assert streamer.calls == [] or touches_streamer
    assert torch.equal(torch.get_rng_state(), before)


EXCLUSIVE = [
    ({"mode_bias": 1.0, "fast_prob": 0.5}, "mode_bias and fast_prob both set P"),
    ({"mode_bias": 0.0, "fast_prob": 0.5, "mode": "auto"}, "mode_bias and fast_prob both set P"),
    ({"mode": "slow", "mode_bias": 0.0}, "mode='slow' already decides the mode: leave out mode_bias"),
    ({"mode": "slow", "fast_prob": 0.5}, "mode='slow' already decides the mode: leave out fast_prob"),
    ({"mode": "balanced", "mode_bias": 1.0, "num_return_sequences": 2}, "mode='balanced' already decides the mode"),
    ({"mode": ["auto", "slow"], "mode_bias": 1.0}, r"mode=\['auto', 'slow'\] already decides the mode"),
    (
        {"cuda_graph": True, "kv_layout": "shared"},
        "cuda_graph=True reads rows of their own, kv_layout='shared' has none",
    ),
    ({"rng": "hf", "seed": 3}, "seed belongs to the seeded stream: with rng='hf' call torch.manual_seed"),
]


@pytest.mark.parametrize(("arguments", "text"), EXCLUSIVE)
def test_arguments_that_exclude_each_other(arguments, text):
    assert_refused(ValueError, text, do_sample=True, **arguments)


@pytest.mark.parametrize("value", ["always", "", 1, 0, None])
def test_cuda_graph_is_one_of_three(value):
    assert_refused(ValueError, f"cuda_graph must be 'auto', True or False; got {value!r}", cuda_graph=value)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, NAN, INF, [0.5, 1.0], torch.tensor([0.0, 0.5])])
def test_fast_prob_outside_its_range(value):
    assert_refused(ValueError, r"fast_prob must be inside \(0, 1\); got", fast_prob=value)


ROW_COUNTS = [
    ({"mode_bias": [1.0, 2.0, 3.0]}, "mode_bias"),
    ({"mode_bias": torch.zeros(2, 2)}, "mode_bias"),
    ({"mode_bias": []}, "mode_bias"),
    ({"mode_bias": {"slow": [1.0] * 5}}, r"mode_bias\['slow'\]"),
    ({"fast_prob": [0.5]}, "fast_prob"),
    ({"mode": ["slow"]}, "mode"),
    ({"mode": ["slow", "fast", "fast"]}, "mode"),
    ({"seed": [1, 2, 3]}, "seed"),
    ({"seed": torch.ones(2, 1, dtype=torch.long)}, "seed"),
]


@pytest.mark.parametrize(("arguments", "name"), ROW_COUNTS)
def test_wrong_row_counts(arguments, name):
    rows = r"must be one value, or one per row \(2 = 2 prompts x 1 samples\); got shape \("
    assert_refused(ValueError, f"{name} {rows}", **arguments)
    samples = r"must be one value, or one per row \(8 = 2 prompts x 4 samples\), or one per prompt \(2\); got shape"
    assert_refused(ValueError, f"{name} {samples}", num_return_sequences=4, do_sample=True, **arguments)


VALUES = [
    (ValueError, {"mode": "medium"}, "unknown mode 'medium'; the modes are 'fast', 'slow'"),
    (ValueError, {"mode": ["slow", "medium"]}, "unknown mode 'medium'"),
    (ValueError, {"mode": ["balanced", "slow"]}, "unknown mode 'balanced'"),
    (ValueError, {"mode_bias": {"medium": 1.0}}, "unknown mode 'medium'"),
    (TypeError, {"mode": 1}, "mode must be 'auto', 'balanced', a mode name or a list of names; got 1"),
    (ValueError, {"mode": ["slow", 1]}, "unknown mode 1; the modes are 'fast', 'slow'"),
    (
        ValueError,
        {"mode": "balanced"},
        "mode='balanced' .*over 2 modes: num_return_sequences must be at least 2; got 1",
    ),
    (ValueError, {"mode_bias": NAN}, "mode_bias must be a number, not NaN"),
    (ValueError, {"mode_bias": [0.0, NAN]}, "mode_bias must be a number, not NaN"),
    (TypeError, {"mode_bias": "strong"}, "mode_bias must be a number or one number per row; got 'strong'"),
    (TypeError, {"fast_prob": "half"}, "fast_prob must be a number or one number per row; got 'half'"),
    (TypeError, {"seed": 1.5}, "seed must be an integer or one integer per row; got 1.5"),
    (TypeError, {"seed": True}, "seed must be an integer or one integer per row; got True"),
    (TypeError, {"seed": "7"}, "seed must be an integer or one integer per row; got '7'"),
    (TypeError, {"seed": torch.tensor([0.5, 1.0])}, "seed must hold integers; got torch.float32"),
    (TypeError, {"seed": ["a", "b"]}, "seed must"),
    (ValueError, {"seed": 2**64}, "a seed must fit 64 bits; got 18446744073709551616"),
    (ValueError, {"seed": [2**64, 1]}, "a seed must fit 64 bits"),
    (ValueError, {"return_logprobs": True}, "return_logprobs=True needs return_dict_in_generate=True"),
    (ValueError, {"rng": "torch"}, r"rng must be None \(a seeded stream per row\) or 'hf'; got 'torch'"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), VALUES, ids=[str(v[1]) for v in VALUES])
def test_wrong_values(error, arguments, text):
    assert_refused(error, text, **arguments)


@pytest.mark.parametrize("knob", [{"mode": "slow"}, {"mode_bias": 1.0}, {"fast_prob": 0.5}])
def test_prompt_that_already_opened_a_mode(knob):
    ids = prompts(2, 6)
    ids[1, -1] = SLOW
    assert_refused(ValueError, "prompt 1 already ends in the tokens of mode 'slow'", ids=ids, **knob)


@pytest.mark.parametrize("temperature", [NAN, 0.0, -1.0])
def test_temperature(temperature):
    # Hugging Face refuses it, after it has streamed the prompt.
    assert_refused(
        ValueError, "temperature", temperature=temperature, do_sample=True, seed=1, mode="auto", touches_streamer=True
    )


def test_misspelt_arguments_are_still_refused():
    assert_refused(ValueError, "mode_biass", mode_biass=1.0, seed=1)


def test_mode_limit_without_a_pad_token():
    model = build("llama", pad_token_id=None)
    modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=2), slow=SLOW)
    with ak.patched(model, modes), forward_calls(model) as calls:
        with pytest.raises(ValueError, match=r"Mode.max_new_tokens needs a pad token .*pass pad_token_id=\.\.\."):
            model.generate(prompts(2, 6), max_new_tokens=3, eos_token_id=None)
        assert calls == []
        model.generate(prompts(2, 6), max_new_tokens=3, eos_token_id=None, pad_token_id=0)


def test_too_few_samples_to_balance():
    modes = ak.Modes(a=7, b=8, c=9)
    with (
        ak.patched(shared("llama"), modes) as model,
        forward_calls(model) as calls,
        pytest.raises(ValueError, match="over 3 modes: num_return_sequences must be at least 3; got 2"),
    ):
        model.generate(prompts(2, 6), do_sample=True, mode="balanced", num_return_sequences=2)
    assert calls == []


@pytest.mark.parametrize("rng", [None, "hf"])
@pytest.mark.parametrize("sampled", [False, True])
def test_all_modes_banned_by_a_processor(sampled, rng):
    # Only the logits show it, so the prefill has run; no token outside the modes may come out.
    with ak.patched(shared("llama"), MODES) as model:
        arguments = {"suppress_tokens": [FAST, SLOW], "max_new_tokens": 3, "do_sample": sampled, "rng": rng}
        with pytest.raises(ValueError, match="row 0: every mode token has logit -inf.*mode='...'"):
            model.generate(prompts(2, 6), mode="auto", **arguments)
        forced = model.generate(prompts(2, 6), mode="slow", **arguments)
        assert (forced[:, 6] == SLOW).all()


@pytest.mark.parametrize("settings", [{"mode": "auto", "do_sample": False}, {"do_sample": True}, {"fast_prob": 0.5}])
def test_nan_logits_count_as_minus_infinity_with_one_warning(settings):
    model = build("llama")

    def break_a_row(module, args, output):
        output.logits[1, :, : VOCAB - 10] = NAN

    with ak.patched(model, ak.Modes(fast=VOCAB - 1, slow=VOCAB - 2)):
        model.register_forward_hook(break_a_row)
        with pytest.warns(UserWarning, match="NaN logits in 1 of 3 rows; they count as -inf") as caught:
            tokens = model.generate(prompts(3, 6, seed=1), max_new_tokens=4, eos_token_id=None, seed=1, **settings)[
                :, 6:
            ]
    assert len([w for w in caught if "NaN" in str(w.message)]) == 1
    # Free greedy steps are Hugging Face's argmax, which takes NaN for the largest.
    checked = tokens[1] if settings.get("do_sample") else tokens[1, :1]
    assert (checked >= VOCAB - 10).all()


def test_kv_tokens_that_cannot_fit():
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, kv_tokens=10**12))
    # 2 layers, keys and values, 2 heads of 8 floats.
    needed = 3 * (10**12 + 4) * 2 * 2 * 2 * 8 * 4
    drawn = []
    with ak.patched(build("llama"), modes) as model:
        with pytest.raises(
            ValueError, match=rf"kv_tokens={10**12} asks for {needed} bytes .*but \d+ bytes are available"
        ):
            model.generate(prompts(3, 4), max_new_tokens=2, streamer=CallbackStreamer(lambda: drawn.append(1)))
        assert not drawn
        out = model.generate(prompts(3, 4), max_new_tokens=2, mode="fast", return_dict_in_generate=True)
    assert out.stats.plan == "full"


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"fast": 5, "slow": 5}, "modes 'fast' and 'slow' have the same ids"),
        ({"fast": -1, "slow": 5}, "a mode's ids must be token ids >= 0"),
        ({"fast": 5}, "at least two modes"),
    ],
)
def test_ids_no_model_can_have(named, text):
    with pytest.raises(ValueError, match=text):
        ak.Modes(**named)
