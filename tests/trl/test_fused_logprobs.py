"""TRL on our kernels: the same numbers as TRL's own functions, also in a trainer's step; everything is restored."""

import contextlib
import sys
import types
from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

import trl.trainer.utils as trl_functions  # noqa: E402

import adapt_kernels as ak  # noqa: E402
from adapt_kernels.native import jit  # noqa: E402
from adapt_kernels.trl import KNOWN_VERSIONS, fused_logprobs  # noqa: E402

pytestmark = pytest.mark.skipif(ak.backends()["native"] is not None, reason=str(ak.backends()["native"]))
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.fixture
def calls(monkeypatch):
    """How often each C++ kernel ran."""
    counts = {"token_logprobs_cpu": 0, "logit_gradient_cpu": 0}
    kernels = jit.load()

    class Counting:
        def __getattr__(self, name):
            counts[name] += 1
            return getattr(kernels, name)

    monkeypatch.setattr(jit, "load", Counting)
    return counts


def head(dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 24, generator=generator).to(dtype)
    weight = torch.randn(501, 24, generator=generator).to(dtype)
    bias = torch.randn(501, generator=generator).to(dtype) if bias else None
    return [hidden, weight, bias], torch.randint(0, 501, (37,), generator=generator)


def run(tensors, targets, *settings):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    found = trl_functions._ChunkedLogProbFunction.apply(*leaves, targets, 0.8, 128, *settings)
    loss = found[0].sum() if found[1] is None else found[0].sum() - 0.3 * found[1].sum()
    loss.backward()
    return [None if x is None else x.detach() for x in found], [t.grad for t in leaves if t is not None]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("logit_scale", [1.0, 0.125])
@pytest.mark.parametrize("outputs", [OUTPUTS, ("log_probs",)], ids=["all", "log_probs"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_head_is_trls_own(calls, softcap, logit_scale, outputs, bias):
    tensors, targets = head(bias=bias)
    expected, expected_grads = run(tensors, targets, softcap, logit_scale, outputs)
    assert not any(calls.values())
    with fused_logprobs():
        found, grads = run(tensors, targets, softcap, logit_scale, outputs)
    assert calls["token_logprobs_cpu"] and calls["logit_gradient_cpu"]
    for got, value in zip([*found, *grads], [*expected, *expected_grads], strict=True):
        assert (got is None) == (value is None)
        if got is not None:
            assert got.dtype == value.dtype
            torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_autocast():
    tensors, targets = head(torch.bfloat16)
    expected, expected_grads = run(tensors, targets)
    with fused_logprobs():
        found, grads = run(tensors, targets)
        exact, targets = head()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast, cast_grads = run(exact, targets)
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(cast[0], expected[0], rtol=0.05, atol=0.1)
    for got, value in zip(grads, expected_grads, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - value.double()).norm() <= 0.02 * value.double().norm()
    assert all(grad.dtype == torch.float32 for grad in cast_grads)


def test_selective_functions(calls):
    import trl.trainer.grpo_trainer  # noqa: F401

    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 9, 301, generator=generator)
    ids = torch.randint(0, 301, (2, 9), generator=generator)
    mask = torch.arange(9) != 4
    results = []
    for use in (False, True):
        leaf = logits.clone().requires_grad_()
        if use:
            with fused_logprobs():
                both = trl_functions.selective_log_softmax_and_entropy(leaf, ids, False, 0.7, mask.expand(2, 9))
                alone = trl_functions.selective_log_softmax(leaf, ids)
                several = trl_functions.selective_log_softmax(leaf, ids[..., None].expand(2, 9, 2))
        else:
            both = trl_functions.selective_log_softmax_and_entropy(leaf, ids, False, 0.7, mask.expand(2, 9))
            alone = trl_functions.selective_log_softmax(leaf, ids)
            several = trl_functions.selective_log_softmax(leaf, ids[..., None].expand(2, 9, 2))
        assert not both[1].requires_grad
        (both[0].sum() + 2 * alone.sum() + several.sum()).backward()
        results.append((*both, alone, several, leaf.grad))
    assert calls["token_logprobs_cpu"] == 2
    for got, value in zip(*results, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)


def test_everything_is_restored_and_unknown_versions_are_refused(monkeypatch):
    names = ("_ChunkedLogProbFunction", "_use_triton", "selective_log_softmax", "selective_log_softmax_and_entropy")
    before = [getattr(trl_functions, name) for name in names]
    with pytest.raises(ZeroDivisionError), fused_logprobs():
        assert all(getattr(trl_functions, n) is not b for n, b in zip(names, before, strict=True))
        with pytest.raises(RuntimeError, match="active already"), fused_logprobs():
            pass
        raise ZeroDivisionError
    assert [getattr(trl_functions, name) for name in names] == before
    monkeypatch.setattr(trl, "__version__", "9.9.9")
    with pytest.raises(RuntimeError, match=rf"knows trl {KNOWN_VERSIONS[0]}; got 9.9.9.*pip install trl=="):
        fused_logprobs().__enter__()
    assert [getattr(trl_functions, name) for name in names] == before


IMPORTER = """
import trl.trainer.utils
from trl.trainer.utils import selective_log_softmax, selective_log_softmax_and_entropy as both
from trl.trainer.utils import _ChunkedLogProbFunction, _use_triton
kept = [selective_log_softmax, both]
"""


@pytest.mark.parametrize("package", ["trl.", ""])
@pytest.mark.parametrize("fails", [False, True])
def test_a_module_imported_inside_has_trls_own_functions_after(calls, monkeypatch, tmp_path, package, fails):
    """Of TRL or not, under any name; and what it keeps elsewhere does what TRL's does."""
    module = types.ModuleType(f"{package}imported_inside")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = ("selective_log_softmax", "selective_log_softmax_and_entropy", "_ChunkedLogProbFunction", "_use_triton")
    before = {name: getattr(trl_functions, name) for name in names}
    logits, ids = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, dtype=torch.long)
    with contextlib.suppress(ZeroDivisionError), fused_logprobs():
        exec(IMPORTER, vars(module))
        assert module.selective_log_softmax is not before["selective_log_softmax"]
        inside = module.selective_log_softmax(logits, ids), module.both(logits, ids)
        assert calls["token_logprobs_cpu"] == 2
        if fails:
            raise ZeroDivisionError
    for name in names:
        assert getattr(trl_functions, name) is before[name]
        if name != "selective_log_softmax_and_entropy":
            assert getattr(module, name) is before[name]
    assert module.both is before["selective_log_softmax_and_entropy"]
    outside = module.kept[0](logits, ids), module.kept[1](logits, ids)
    assert calls["token_logprobs_cpu"] == 2, "outside of the block TRL computes"
    torch.testing.assert_close(outside, inside, rtol=1e-5, atol=1e-5)
    assert torch.equal(outside[0], before["selective_log_softmax"](logits, ids))


def test_our_kernels_serve_where_they_can_run(calls, monkeypatch):
    """The choice is that of `token_logprobs`: by device and by what can be compiled there."""
    asked, answers = [], iter(["reference", "native", "native"])

    def choose_name(op, backend, logits):
        asked.append((op, backend, logits.device.type))
        return next(answers)

    module = sys.modules["adapt_kernels.trl.fused_logprobs"]  # the package's attribute is the function
    monkeypatch.setattr(module, "choose_name", choose_name)
    logits, ids = torch.randn(2, 3, 11), torch.zeros(2, 3, dtype=torch.long)
    with fused_logprobs():
        for count in (0, 1):
            trl_functions.selective_log_softmax(logits, ids)
            assert calls["token_logprobs_cpu"] == count
        served = trl.trainer.utils.selective_log_softmax
        on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, ndim=3, shape=logits.shape)
        on_gpu.stride = logits.stride
        monkeypatch.setattr(module, "token_logprobs", lambda *_, **__: ("ours", None))
        assert served(on_gpu, ids) == "ours" and trl_functions._use_triton(torch.device("cuda"))
        assert trl_functions._use_triton(torch.device("cpu")) and not trl_functions._use_triton(torch.device("meta"))
    assert asked == [("token_logprobs", "auto", "cpu")] * 2 + [("token_logprobs", "auto", "cuda")]


def train(tmp_path, fused):
    """Two steps of GRPO on a tiny model from fixed seeds; the logged losses and the trained parameters."""
    from contextlib import nullcontext

    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

    set_seed(0)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    config = Qwen2Config(
        vocab_size=28, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
        max_steps=2, learning_rate=1.0, logging_steps=1, report_to=[], use_cpu=True, seed=0, save_strategy="no",
        optim="sgd", bf16=False,
    )  # fmt: skip
    with fused_logprobs() if fused else nullcontext():
        trainer = trl.GRPOTrainer(
            model=Qwen2ForCausalLM(config),
            reward_funcs=lambda completions, **_: [float(text.count("a") + len(set(text))) for text in completions],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e f", "x y z", "q r s"]}),
            processing_class=tokenizer,
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, [p.detach().clone() for p in trainer.model.parameters()]


def test_a_grpo_trainer_steps_on_our_kernels(tmp_path, calls):
    losses, parameters = train(tmp_path / "trl", fused=False)
    assert not any(calls.values())
    fused_losses, fused_parameters = train(tmp_path / "ours", fused=True)
    assert calls["token_logprobs_cpu"] >= 2 and calls["logit_gradient_cpu"] >= 2, calls
    assert len(losses) == 2 and fused_losses == pytest.approx(losses, rel=1e-3, abs=1e-5)
    for got, value in zip(fused_parameters, parameters, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4)
