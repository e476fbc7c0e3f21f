"""Layout "shared": the unpatched model's tokens from prompts whose KV is stored once, and how much that saves."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from parity import CACHE
from recorders import RecordingStreamer, RowLengths, forward_calls
from tiny_models import DECODER_ONLY, EOS, FAST, SLOW, build, left_padded, prompts, shared
from transformers.cache_utils import DynamicLayer

import adapt_kernels as ak
from adapt_kernels.hf.kv import layouts
from adapt_kernels.hf.kv.allotment import Allotment, RecentLengths
from adapt_kernels.hf.kv.segments import KVLedger
from adapt_kernels.hf.kv.shared_prompts import PromptRows, SharedPromptLayer
from adapt_kernels.hf.plan import Plan

WIDTH = 8
LENGTHS = [4, 14, 8, 14, 8, 3]
MODES = ak.Modes(fast=ak.Mode(FAST, kv_tokens=6), slow=SLOW)
NO_ATTENTION_FUNCTIONS = (
    *("bloom", "falcon", "mamba", "recurrent_gemma"),
    *("deepseek_v3", "falcon_h1", "qwen3_next", "jamba"),
)
READERS = [name for name in DECODER_ONLY if name not in NO_ATTENTION_FUNCTIONS]
DEFAULT = ("llama", "gemma2", "gpt2", "gpt_oss", "lfm2", "opt")


def arguments(padded=True, samples=1):
    ids = prompts(len(LENGTHS), WIDTH)
    inputs = left_padded(ids, [8, 3, 8, 5, 4, 8]) if padded else {"input_ids": ids}
    ends = [RowLengths(WIDTH, [length for length in LENGTHS for _ in range(samples)])]
    inputs |= {"stopping_criteria": ends, "eos_token_id": EOS, "suppress_tokens": [EOS], "max_new_tokens": 16}
    drawn = {"do_sample": True, "top_k": 1, "num_return_sequences": samples}
    return inputs | {"return_dict_in_generate": True} | (drawn if samples > 1 else {"do_sample": False})


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(
    "architecture", [a if a in DEFAULT else pytest.param(a, marks=pytest.mark.full) for a in READERS]
)
def test_tokens_equal_the_unpatched_models(architecture, samples, padded):
    model, call = shared(architecture), arguments(padded, samples)
    implementation = model.config._attn_implementation
    unpatched = model.generate(**call)
    with ak.patched(model, MODES):
        ours = model.generate(**call, kv_layout="shared")
        rows = model.generate(**call)
    assert torch.equal(ours.sequences, unpatched.sequences)
    assert ours.stats.row_steps == rows.stats.row_steps
    assert model.config._attn_implementation == implementation


def test_stores_a_prompt_once():
    model, call = shared("llama"), {"do_sample": True, "eos_token_id": None, "max_new_tokens": 5, "seed": 1}
    with ak.patched(model, MODES):
        model.generate(prompts(2, 100), num_return_sequences=8, **call, kv_layout="shared")
        peak = ak.last_stats(model).kv_bytes_peak
    # 2 layers, keys and values, 2 heads of 8 floats; 4 positions of 16 rows.
    assert peak == 4 * 2 * 8 * 4 * (2 * 100 + 16 * 4)


@pytest.mark.parametrize("lengths", [[16] * 6, LENGTHS])
def test_returned_cache(lengths):
    model, call = shared("llama"), arguments()
    call["stopping_criteria"] = [RowLengths(WIDTH, lengths)]
    theirs = model.generate(**call)[CACHE]
    with ak.patched(model, MODES):
        ours = model.generate(**call, kv_layout="shared")[CACHE]
    for ours_layer, theirs_layer in zip(ours.layers, theirs.layers, strict=True):
        real = torch.nn.functional.pad(call["attention_mask"], (0, theirs_layer.keys.shape[2] - WIDTH), value=1)
        for name in ("keys", "values"):
            pair = [getattr(layer, name) * real[:, None, :, None] for layer in (ours_layer, theirs_layer)]
            torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


def test_peak_bytes_against_huggingfaces():
    """4 prompts of 512 with 16 samples, 56 rows of 50 tokens and 8 of 2000: allocation alone, without a model."""
    modes, ledger, rows = ak.Modes(fast=ak.Mode(FAST, kv_tokens=50), slow=SLOW), KVLedger(), PromptRows(4, None)
    plain = DynamicLayer()
    plain.update(*torch.zeros(2, 4, 1, 512, 1))
    layer = SharedPromptLayer(plain, ledger, Allotment(modes, RecentLengths(), 0, most_new=1999), rows)
    layer.reorder_cache(torch.arange(4).repeat_interleave(16))
    for step in range(1999):
        if step == 49:
            layer.reorder_cache(torch.arange(8))
        layer.update(*torch.zeros(2, layer._slots, 1, 1, 1))
    huggingface = 2 * 64 * (512 + 1999) * 4
    assert huggingface / ledger.peak_bytes >= 5
    layer.release()
    assert ledger.live_bytes == 0


class TestAuto:
    """What `kv_layout="auto"`, the default, takes."""

    def peak(self, model, **more):
        call = {"do_sample": True, "top_k": 1, "max_new_tokens": 6, "eos_token_id": None, "num_return_sequences": 4}
        with ak.patched(model, MODES):
            out = model.generate(prompts(2, 30), **{**call, **more})
            return out, ak.last_stats(model).kv_bytes_peak

    @pytest.mark.parametrize("architecture", ["llama", "gemma2", "lfm2"])
    def test_shares_what_is_worth_it(self, monkeypatch, architecture):
        model = shared(architecture)
        few, few_peak = self.peak(model)
        monkeypatch.setattr(layouts, "_WORTH_SHARING", 1 << 10)
        many, many_peak = self.peak(model)
        assert torch.equal(few, many)
        assert few_peak == self.peak(model, kv_layout="rows")[1]
        assert many_peak == self.peak(model, kv_layout="shared")[1] < few_peak

    def test_bytes_decide(self, monkeypatch):
        # 6 copies of 30 positions, keys and values of 2 heads of 8 floats, in each layer.
        copied = 6 * 30 * 2 * 2 * 8 * 4
        model, peaks = shared("llama"), []
        for worth in (copied, copied + 1):
            monkeypatch.setattr(layouts, "_WORTH_SHARING", worth)
            peaks.append(self.peak(model)[1])
        assert peaks[0] < peaks[1]

    @pytest.mark.parametrize(
        ("prompts_of", "padded", "triton", "layouts_by_worth"),
        [
            ([0, 0], False, True, ("shared", "rows")),
            ([0, 0], True, True, ("shared", "shared")),
            ([0, 1], True, True, ("shared", "shared")),
            ([0, 1], False, True, ("rows", "rows")),
            ([0, 0], True, False, ("rows", "rows")),
        ],
    )
    def test_on_a_gpu(self, monkeypatch, prompts_of, padded, triton, layouts_by_worth):
        """Bytes decide, and a mask, in which "sdpa" looks for padding at every step; Triton must be there."""
        mask = torch.ones(2, 30, dtype=torch.long) if padded else None
        first = torch.tensor(prompts_of).unique()
        choice = layouts.LayoutChoice("auto", shared("llama"), {}, first, 2, mask, torch.device("cpu"))
        choice._device = torch.device("cuda")
        layer = SimpleNamespace(keys=SimpleNamespace(device=choice._device))
        monkeypatch.setattr(layouts, "plain_layers", lambda cache: [layer] * 2)
        monkeypatch.setattr(layouts, "_fits_triton", lambda layers: triton)
        monkeypatch.setattr(layouts, "bytes_per_position", lambda cache: 64)
        copied = (2 - len(first)) * 30 * 64 // 2
        found = []
        for worth in (copied, copied + 1):
            monkeypatch.setattr(layouts, "_WORTH_SHARING", worth)
            plan = choice.at_first(Plan("full", layout="shared"))
            found.append("shared" if plan.layout == "shared" and choice._pays(None, 30) else "rows")
        assert tuple(found) == layouts_by_worth
        monkeypatch.setattr(choice._model.config, "_attn_implementation", "eager")  # which never looks for padding
        assert not choice._pays(None, 30)

    @pytest.mark.parametrize("architecture", ["bloom", "deepseek_v3", "jamba"])
    def test_models_that_cannot_share_keep_rows(self, monkeypatch, architecture):
        monkeypatch.setattr(layouts, "_WORTH_SHARING", 0)
        model = shared(architecture)
        implementation = model.config._attn_implementation
        with ak.patched(model, MODES):
            # The first call may have to find out.
            first, (later, peak) = self.peak(model)[0], self.peak(model)
            rows, rows_peak = self.peak(model, kv_layout="rows")
        assert torch.equal(first, rows) and torch.equal(later, rows) and peak == rows_peak
        assert model.config._attn_implementation == implementation

    def test_prompts_that_differ_are_not_shared(self, monkeypatch):
        monkeypatch.setattr(layouts, "_WORTH_SHARING", 0)
        monkeypatch.setattr(layouts, "SharedLayout", None)
        self.peak(shared("llama"), num_return_sequences=1)


def test_a_prompt_whose_rows_have_ended_is_given_back(monkeypatch):
    held = []
    attend = SharedPromptLayer.attend
    monkeypatch.setattr(
        SharedPromptLayer, "attend", lambda self, *a, **k: (held.append(len(self._prompt[0])), attend(self, *a, **k))[1]
    )
    # All but prompt 1 end after 3 tokens.
    lengths = [3, 3, 6, 9, 3, 3, 3, 3]
    call = {"input_ids": prompts(4, WIDTH), "num_return_sequences": 2, "do_sample": True, "top_k": 1}
    call |= {"stopping_criteria": [RowLengths(WIDTH, lengths)], "eos_token_id": EOS, "max_new_tokens": 10}
    model = shared("llama")
    unpatched = model.generate(**call)
    with ak.patched(model, MODES):
        assert torch.equal(model.generate(**call, kv_layout="shared"), unpatched)
    layers = model.config.num_hidden_layers
    # A forward follows every token but the last; rows leave before the one after token 3.
    assert held == [4] * 2 * layers + [1] * 6 * layers


class TestRefusals:
    def refused(self, model, text, error=ValueError, **more):
        with ak.patched(model, MODES), pytest.raises(error, match=text):
            model.generate(**{"max_new_tokens": 4, "do_sample": False, "kv_layout": "shared", **more})

    @pytest.mark.parametrize("architecture", ["bloom", "falcon_h1"])
    def test_models_without_attention_functions(self, architecture):
        text = "kv_layout='shared' cannot serve this call: .* does not take attention functions"
        self.refused(shared(architecture), text, input_ids=prompts(2, 4))

    def test_attention_that_computes_with_the_keys_first(self):
        # Its latent attention makes new keys of those the cache returns.
        model, streamer = shared("deepseek_v3"), RecordingStreamer()
        text = "cannot serve this call: DeepseekV3ForCausalLM's attention does not read the keys .* Leave kv_layout out"
        with forward_calls(model) as calls, forward_calls(model.lm_head) as heads:
            self.refused(model, text, input_ids=prompts(2, 4), streamer=streamer)
        # The prompt, and no token.
        assert len(calls) == len(heads) == 1 and len(streamer.calls) == 1
        assert model.config._attn_implementation == "sdpa"
        with ak.patched(model, MODES):
            model.generate(prompts(2, 4), max_new_tokens=3)
            assert ak.last_stats(model).plan == "full"

    def test_holes_in_the_mask(self):
        mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])
        self.refused(shared("llama"), "must be left padding", input_ids=prompts(2, 4), attention_mask=mask)

    @pytest.mark.parametrize(
        ("more", "text"),
        [
            (
                {"rng": "hf", "do_sample": True},
                "kv_layout='shared' cannot serve this call: rng='hf' draws for the whole",
            ),
            ({"num_beams": 2}, "kv_layout cannot be honoured by this call: beam search has its own decoding loop"),
        ],
        ids=["sample_only", "original"],
    )
    def test_other_plans(self, more, text):
        self.refused(shared("llama"), text, input_ids=prompts(2, 4), **more)

    def test_unknown_layout(self):
        self.refused(shared("llama"), "kv_layout must be 'auto', 'rows' or 'shared'; got 'paged'", kv_layout="paged")


def test_calls_side_by_side():
    """One thread's layout is not seen by another's, and the implementation is restored when the last one ends."""
    model, results = ak.patch(build("llama"), MODES), {}
    call = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompts(4, WIDTH), **call)

    def run(name, **more):
        results[name] = [model.generate(prompts(4, WIDTH), **call, **more) for _ in range(4)]

    threads = [
        threading.Thread(target=run, args=(i,), kwargs={"kv_layout": k}) for i, k in enumerate(("shared", "rows") * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(out, expected) for outs in results.values() for out in outs)
    assert model.config._attn_implementation == "sdpa"


def test_generate_on_triton_gives_the_same_tokens():
    """The Triton kernels under the interpreter, in a process of its own."""
    pytest.importorskip("triton")
    code = """
import sys
sys.path.insert(0, "tests/hf")
from functools import partial
import torch
import adapt_kernels as ak
from adapt_kernels.hf.kv import batch, shared_prompts
from tiny_models import EOS, FAST, SLOW, left_padded, prompts, shared
launched = []
def attention(*args, **kwargs):
    launched.append(1)
    return original(*args, **kwargs, backend="triton")
original, shared_prompts.segment_attention = shared_prompts.segment_attention, attention
batch.branch = partial(batch.branch, backend="triton")
call = {**left_padded(prompts(2, 6), [6, 4]), "num_return_sequences": 2, "max_new_tokens": 3, "eos_token_id": None}
call |= {"do_sample": True, "top_k": 0, "seed": 3, "fast_prob": 0.5}
with ak.patched(shared("gpt_oss"), ak.Modes(fast=FAST, slow=SLOW)) as model:
    rows, ours = model.generate(**call), model.generate(**call, kv_layout="shared")
assert torch.equal(rows, ours), (rows, ours)
print(len(launched))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # One layer without a window, with sinks, at 2 decode steps.
    assert done.stdout.split() == ["2"]
