"""The cache of a call whose rows have left: right, or refused; plain after a copy or a pickle."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import pytest
import torch
from parity import CACHE, MODES
from recorders import RowLengths, forward_calls
from tiny_models import EOS, build, left_padded, prompts
from transformers import DynamicCache

import adapt_kernels as ak
from adapt_kernels.hf.kv.rebuilt_cache import RebuiltCache

LENGTHS = (3, 9, 5)


def call(**more):
    inputs = left_padded(prompts(3, 8), [8, 3, 6])
    ends = {"eos_token_id": EOS, "stopping_criteria": [RowLengths(8, LENGTHS)], "suppress_tokens": [EOS, 0]}
    return {**inputs, **ends, "max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True} | more


def generated(model, **more):
    """(our output with a cache that is not computed yet, the unpatched model's)."""
    theirs = model.generate(**call(**more))
    ours = ak.patch(model, MODES).generate(**call(**more))
    assert torch.equal(ours.sequences, theirs.sequences) and type(vars(ours)[CACHE]) is RebuiltCache
    return ours, theirs


def assert_equal(ours, theirs):
    real = torch.nn.functional.pad(call()["attention_mask"], (0, 8), value=1)[:, None, :, None]
    # Positions after a row's end hold what padding gave, which is nobody's business.
    for row, length in enumerate(LENGTHS):
        real[row, :, 8 + length :] = 0
    assert ours.get_seq_length() == theirs.get_seq_length()
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(a.keys * real, b.keys * real, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.values * real, b.values * real, atol=1e-4, rtol=1e-4)


def saved(output):
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [
        lambda out: pickle.loads(pickle.dumps(out)),
        saved,
        copy.deepcopy,
        copy.copy,
        lambda out: {CACHE: pickle.loads(pickle.dumps(out[CACHE]))},
        lambda out: {CACHE: copy.deepcopy(out[CACHE])},
    ],
    ids=["pickle", "torch.save", "deepcopy", "copy", "pickled cache", "copied cache"],
)
def test_copies_are_plain_and_right(copied):
    model = build("llama")
    ours, theirs = generated(model)
    cache = copied(ours)[CACHE]
    assert_equal(cache, theirs[CACHE])
    assert type(cache) is DynamicCache


@pytest.mark.parametrize("last", range(3))
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_not_held_against_it(implementation, last, monkeypatch):
    """Whichever row is the last one: eager attention gives keys of padding that depend on the number of keys."""
    lengths = [3, 3, 3]
    lengths[last] = 9
    monkeypatch.setitem(globals(), "LENGTHS", tuple(lengths))
    model = build("llama", attn_implementation=implementation)
    ours, theirs = generated(model)
    assert_equal(ours[CACHE], theirs[CACHE])


def test_it_is_lazy_and_then_plain():
    model = build("llama")
    ours, theirs = generated(model)
    with forward_calls(model) as calls:
        cache = ours[CACHE]
        assert not calls
        assert_equal(cache, theirs[CACHE])
        cache.get_seq_length()
        assert len(calls) == 1 and type(cache) is DynamicCache


def test_it_does_not_keep_the_model_alive():
    model = build("llama")
    ours, _ = generated(model)
    watch = weakref.ref(model)
    ak.unpatch(model)
    del model
    gc.collect()
    assert watch() is None
    with pytest.raises(RuntimeError, match="can no longer be computed: the model is gone. Read it before that"):
        ours[CACHE].get_seq_length()


class TestChanges:
    def refused(self, model, change, text):
        ours, _ = generated(model)
        change(model)
        for access in (lambda: ours[CACHE].layers, lambda: pickle.dumps(ours)):
            with pytest.raises(RuntimeError, match=f"the returned cache can no longer be computed: {text}"):
                access()

    def test_a_training_step(self):
        def step(model):
            model(prompts(1, 4), labels=prompts(1, 4)).loss.backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()

        self.refused(build("llama"), step, "the model's parameters changed")

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.load_state_dict(build("llama", seed=9).state_dict()),
            lambda m: setattr(m, "lm_head", torch.nn.Linear(32, 97, bias=False)),
            lambda m: setattr(m.lm_head.weight, "data", torch.zeros(97, 32)),
            lambda m: m.to(torch.float64),
        ],
        ids=["load_state_dict", "another module", "data", "dtype"],
    )
    def test_parameters(self, change):
        self.refused(build("llama"), change, "the model's parameters changed")

    def test_training_mode(self):
        self.refused(build("llama"), lambda m: m.train(), "the model changed between training and evaluation")

    def test_a_hook(self):
        hook = lambda module, args, out: out + torch.randn(3, 1, 32)  # noqa: E731
        self.refused(build("llama"), lambda m: m.model.norm.register_forward_hook(hook), "the forward hook")

    def test_adapters(self):
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(build("llama"), lora).eval()
        with ak.patched(model, MODES):
            with model.disable_adapter():
                ours = model.generate(**call())
                inside = model.generate(**call())
                assert inside[CACHE].get_seq_length() == 16
            with pytest.raises(RuntimeError, match="the model's active adapters changed"):
                ours[CACHE].get_seq_length()
            out = model.generate(**call())
            model.merge_adapter()
            with pytest.raises(RuntimeError, match="the model's active adapters changed"):
                out[CACHE].get_seq_length()


def test_autocast_of_the_call():
    model = build("llama")
    ak.patch(model, MODES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.generate(**call())
    assert type(vars(out)[CACHE]) is RebuiltCache
    inside = out[CACHE].layers[0].keys
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = model.generate(**call())[CACHE].layers[0].keys
    assert inside.dtype == again.dtype and torch.equal(inside, again)


def widened(factor):
    """A model whose first attention reads its inputs times factor(positions)."""
    model = build("llama")
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    @ak.row_independent
    def wider(hidden_states, *args, **kwargs):
        return plain(hidden_states * factor(hidden_states.shape[1]), *args, **kwargs)

    attention.forward = wider
    return model


def test_a_model_whose_whole_forward_is_not_its_decoding():
    """Its sequences are decoded again; from then on its rows stay."""
    model = widened(lambda positions: 1 + 0.1 * positions)
    ours, theirs = generated(model)
    assert ours.stats.row_steps < ours.stats.row_steps_padded
    assert_equal(ours[CACHE], theirs[CACHE])
    assert type(vars(model.generate(**call()))[CACHE]) is not RebuiltCache


def test_a_call_that_goes_on_from_such_a_cache():
    model = widened(lambda positions: 1 + 0.1 * positions)
    ours, theirs = generated(model)
    ids = torch.cat([theirs.sequences, theirs.sequences[:, -2:]], 1)
    again = {"input_ids": ids, "max_new_tokens": 4, "do_sample": False}
    ak.unpatch(model)
    expected = model.generate(**again, **{CACHE: theirs[CACHE]})
    assert torch.equal(ak.patch(model, MODES).generate(**again, **{CACHE: ours[CACHE]}), expected)


def test_a_model_that_does_not_decode_the_same_again():
    """Nor is it believed."""
    calls = itertools.count(1)
    model = ak.patch(widened(lambda _: 1 + 0.1 * next(calls)), MODES)
    ours = model.generate(**call())
    with pytest.raises(RuntimeError, match="decoding the sequences again gave other keys. Call generate again"):
        ours[CACHE].get_seq_length()
    assert type(vars(model.generate(**call()))[CACHE]) is not RebuiltCache
