"""Whether a model's attention reads shared prompts as it would read rows of its own: proved, or not taken."""

from types import SimpleNamespace

import pytest
import torch
from recorders import RecordingStreamer
from tiny_models import CONFIGS, FAST, SLOW, build, left_padded, prompts, read_its_cache
from transformers import AttentionInterface

import adapt_kernels as ak
from adapt_kernels.hf.call.state import STATES
from adapt_kernels.hf.kv import attention as segment_reading
from adapt_kernels.hf.kv import layouts
from adapt_kernels.hf.kv.attention import UNREAD, ReadingProof, reading_segments
from adapt_kernels.hf.kv.shared_prompts import SharedPromptLayer

MODES = ak.Modes(fast=FAST, slow=SLOW)
# What attention of these models does beside scaled dot products of what the cache returns, with sizes that show it.
_INDEXED = {**CONFIGS["deepseek_v3"], "index_topk": 4, "index_n_heads": 4, "index_head_dim": 16}
ODD = {
    "deepseek_v32": (_INDEXED, None),  # a sparse mask, where its config names sdpa or eager; no plain cache layers
    "glm_moe_dsa": (_INDEXED, None),
    "deepseek_v3": (CONFIGS["deepseek_v3"], UNREAD),
    "diffllama": ({**CONFIGS["llama"], "attention_dropout": 0.0}, "computes with the values that its cache returns"),
    "doge": ({**CONFIGS["llama"], "keep_window_size": 4}, "has a mask of its own"),
}


@pytest.fixture(autouse=True)
def everything_is_worth_sharing(monkeypatch):
    monkeypatch.setattr(layouts, "_WORTH_SHARING", 0)


def odd_model(name, monkeypatch, **more):
    monkeypatch.setitem(CONFIGS, name, ODD[name][0])
    return build(name, **more)


def call(rows=2, width=20, new=12, **more):
    arguments = left_padded(prompts(rows, width), [width, width // 2, width - 3][:rows])
    arguments |= {"max_new_tokens": new, "do_sample": True, "top_k": 1, "num_return_sequences": 3}
    return arguments | {"eos_token_id": None} | more


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ODD)
def test_a_model_with_other_attention_keeps_its_tokens(name, implementation, monkeypatch):
    model, fault = odd_model(name, monkeypatch, attn_implementation=implementation), ODD[name][1]
    unpatched = model.generate(**call())
    with ak.patched(model, MODES):
        for _ in range(2):
            assert torch.equal(model.generate(**call()), unpatched)
            assert ak.last_stats(model).plan == "full"
        assert STATES[model].reading_faults == ({} if fault is None else {(implementation, "cpu"): fault})
        if fault is not None:
            with pytest.raises(ValueError, match="kv_layout='shared' cannot serve this call: .* Leave kv_layout out"):
                model.generate(**call(), kv_layout="shared")
    assert type(model.config._attn_implementation) is str and model.config._attn_implementation == implementation


def test_the_first_call_proves_a_model_and_later_ones_share_from_the_start():
    model, proofs = build("llama"), []
    unpatched = model.generate(**call())
    settle = layouts.LayoutChoice.settle

    def counted(self, plan, layout, *rest):
        proofs.append(layout.proof is not None and layout.proof.begun)
        return settle(self, plan, layout, *rest)

    with ak.patched(model, MODES), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts.LayoutChoice, "settle", counted)
        for _ in range(2):
            assert torch.equal(model.generate(**call()), unpatched)
        assert STATES[model].reading_faults == {("sdpa", "cpu"): None}
    assert sum(proofs) == 1


@pytest.mark.parametrize("width", [4, 20])
def test_a_mask_that_differs_only_in_long_prompts_is_not_trusted_after_short_ones(width, monkeypatch):
    """The model's own mask is made anew even where it hides nothing."""
    model = odd_model("doge", monkeypatch)
    with ak.patched(model, MODES):
        model.generate(**call(width=width, new=4))
        assert STATES[model].reading_faults == {("sdpa", "cpu"): "has a mask of its own"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda q, k, v, m: (q, k + 0, v, m), UNREAD),
        (lambda q, k, v, m: (q, k, v + 0, m), "computes with the values that its cache returns"),
        (lambda q, k, v, m: (q, k, v, m.clone()), "has a mask of its own"),
        (lambda q, k, v, m: (q, k, v, m[..., :]), None),
        (lambda q, k, v, m: (q, k, v, None), "leaves the padding in"),
    ],
    ids=["keys", "values", "mask", "view of the mask", "no mask"],
)
def test_what_the_model_passes_on(change, fault, monkeypatch):
    """Attention modules that compute with something before they pass it on, in one step of a padded batch."""
    read = segment_reading._FUNCTIONS["sdpa"]

    def changed(module, query, key, value, attention_mask, **settings):
        return read(module, *change(query, key, value, attention_mask), **settings)

    monkeypatch.setitem(segment_reading._FUNCTIONS, "sdpa", changed)
    model = build("llama")
    with ak.patched(model, MODES):
        model.generate(**call(new=3))
        assert STATES[model].reading_faults == {("sdpa", "cpu"): fault}


def test_another_result_from_the_same_tensors_is_not_trusted(monkeypatch):
    """Eager attention that adds something of its own, as sinks on the module would."""
    model = build("llama", attn_implementation="eager")
    plain = segment_reading._eager_function(type(model.model.layers[0].self_attn))

    def louder(*args, **kwargs):
        output, weights = plain(*args, **kwargs)
        return output * 1.01, weights

    monkeypatch.setattr(segment_reading, "_eager_function", lambda attention_class: louder)
    with ak.patched(model, MODES):
        model.generate(**call(new=3))
        (fault,) = STATES[model].reading_faults.values()
    assert fault == "computes something else from its keys and values than scaled dot products"


def test_a_model_that_reads_its_cache_by_itself(monkeypatch):
    model = read_its_cache(build("llama"), monkeypatch)
    unpatched = model.generate(**call(new=3))
    with ak.patched(model, MODES):
        assert torch.equal(model.generate(**call(new=3)), unpatched)
        assert STATES[model].reading_faults == {("sdpa", "cpu"): "reads its cache by itself"}


class TestAfterTheProof:
    """A model that reads rightly at first and differently later stops: never silently wrong."""

    def proved(self):
        model = ak.patch(build("llama"), MODES)
        model.generate(**call(new=3))
        assert STATES[model].reading_faults == {("sdpa", "cpu"): None}
        return model

    def test_keys(self, monkeypatch):
        model, update = self.proved(), SharedPromptLayer.update
        monkeypatch.setattr(SharedPromptLayer, "update", lambda *a, **k: tuple(t + 0 for t in update(*a, **k)))
        with pytest.raises(RuntimeError, match="does not read the keys that its cache returns .*'rows'"):
            # One step: nothing comes after it that could notice.
            model.generate(**call(input_ids=prompts(2, 20), attention_mask=None, max_new_tokens=2))
        assert model.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize(
        ("settings", "text"),
        [({"position_bias": torch.zeros(1)}, "takes position_bias"), ({"dropout": 0.1}, "takes dropout")],
    )
    def test_settings(self, settings, text):
        key = torch.zeros(1, 1, 1, 4)
        rows = SimpleNamespace(padded=False)
        key.segments_of = SimpleNamespace(proof=None, shown_values=key, rows=rows)
        with pytest.raises(RuntimeError, match=f"this model's attention {text}: call generate with kv_layout='rows'"):
            segment_reading._FUNCTIONS["sdpa"](None, key, key, key, None, **settings)


@pytest.mark.parametrize(
    ("implementation", "honoured"), [("sdpa", {"sliding_window"}), ("eager", {"sliding_window", "softcap", "s_aux"})]
)
def test_takes_the_settings_that_the_plain_implementation_takes(implementation, honoured):
    """Under sdpa, transformers leaves a softcap out or refuses it, depending on the release."""
    seen, key = {}, torch.zeros(1, 1, 1, 4)
    key.segments_of = SimpleNamespace(
        proof=None,
        shown_values=key,
        rows=SimpleNamespace(padded=False),
        attend=lambda query, **settings: seen.update(settings) or query,
    )
    given = {"scaling": 0.5, "sliding_window": 3, "softcap": 2.0, "s_aux": torch.ones(1)}
    module = build("llama").model.layers[0].self_attn
    segment_reading._FUNCTIONS[implementation](module, torch.zeros(1, 1, 1, 4), key, key, None, **given)
    names = {"sliding_window": "window", "softcap": "softcap", "s_aux": "sinks"}
    assert {name for name, ours in names.items() if seen[ours] is not None} == honoured and seen["scale"] == 0.5


def test_the_name_reads_as_the_plain_one_and_is_found_as_ours():
    model = build("llama")
    with reading_segments(model), reading_segments(model):
        name = model.config._attn_implementation
        assert name == "sdpa" and name in ("eager", "sdpa") and name != "eager" and not name.startswith("adapt")
        assert AttentionInterface()[name] is segment_reading._FUNCTIONS["sdpa"]
        assert AttentionInterface().get_interface(name, None) is segment_reading._FUNCTIONS["sdpa"]
    assert AttentionInterface()[model.config._attn_implementation] is not segment_reading._FUNCTIONS["sdpa"]


def test_the_proof_sees_a_layer_whose_keys_are_never_read():
    proof = ReadingProof()
    assert not proof.begun and proof.finish() is None
    proof.issue(object())
    assert proof.begun and proof.finish() == UNREAD


def test_a_refusal_by_name_comes_before_any_token(monkeypatch):
    model, streamer = odd_model("diffllama", monkeypatch), RecordingStreamer()
    with ak.patched(model, MODES), pytest.raises(ValueError, match="cannot serve this call"):
        model.generate(prompts(2, 4), max_new_tokens=4, do_sample=False, kv_layout="shared", streamer=streamer)
    assert len(streamer.calls) == 1  # the prompt
