"""State outside a call's inputs, one entry per row: rows must stay where Hugging Face has them."""

import functools

import pytest
import torch
from parity import MODES, ROWS, both, six_rows
from tiny_models import FAST, SLOW, build, prompts, shared
from torch.nn.modules import module as torch_module
from transformers import AttentionInterface, AttentionMaskInterface

import adapt_kernels as ak
from adapt_kernels.hf.row_hooks import row_hook_reason


class Steering:
    """Adds a vector of its own to every row."""

    def __init__(self, width):
        self.vectors = 3 * torch.randn(ROWS, 1, width, generator=torch.Generator().manual_seed(0))

    def __call__(self, module, args, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        steered = hidden + self.vectors
        return (steered, *rest) if isinstance(output, tuple) else steered

    def before(self, module, args):
        return (args[0] + self.vectors, *args[1:])


def test_a_steering_hook_with_one_vector_per_row():
    model = build("llama")
    plain = model.generate(**six_rows())
    model.model.layers[0].register_forward_hook(Steering(32))
    unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "sample_only")
    assert torch.equal(unpatched, patched) and not torch.equal(unpatched, plain)


@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (lambda m, s: m.model.norm.register_forward_hook(s), "hook Steering on model.norm may index rows"),
        (lambda m, s: m.lm_head.register_forward_pre_hook(s.before), "hook Steering.before on lm_head may index rows"),
        (
            lambda m, s: m.lm_head.register_forward_pre_hook(functools.partial(s.before)),
            "hook Steering.before on lm_head may index rows",
        ),
        (
            lambda m, s: setattr(
                m.model.norm, "forward", functools.wraps(m.model.norm.forward)(_steered(m.model.norm.forward, s))
            ),
            "the forward of model.norm was replaced with RMSNorm.forward|LlamaRMSNorm.forward",
        ),
    ],
    ids=["hook", "pre-hook", "partial", "forward"],
)
def test_siblings(attach, reason):
    model = build("llama")
    attach(model, Steering(32))
    unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "sample_only")
    assert torch.equal(unpatched, patched)
    with ak.patched(model, MODES):
        model.generate(**six_rows())
        assert any(part in ak.last_stats(model).reason for part in reason.split("|"))
        with pytest.raises(ValueError, match="kv_layout='shared' cannot serve this call: the forward"):
            model.generate(**six_rows(), kv_layout="shared")


def _steered(forward, steering):
    return lambda hidden: steering(None, (), forward(hidden))


def test_a_hook_of_all_modules():
    model, steering = shared("llama"), Steering(32)

    def only_the_norm(module, args, output):
        return steering(module, args, output) if module is model.model.norm else None

    handle = torch_module.register_module_forward_hook(only_the_norm)
    try:
        unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "sample_only")
    finally:
        handle.remove()
    assert torch.equal(unpatched, patched)
    assert row_hook_reason(model) is None


class OwnNorm(torch.nn.Module):
    """In the place of a norm."""

    def __init__(self, inner, steering):
        super().__init__()
        self.inner, self.steering = inner, steering

    def forward(self, hidden):
        return self.steering(self, (), self.inner(hidden))


def wrapped(model, steering):
    model.model.norm = OwnNorm(model.model.norm, steering)


def subclassed(model, steering, method="forward", module=None):
    module = model.model.norm if module is None else module
    original = getattr(type(module), method)
    own = {method: lambda self, hidden: steering(self, (), original(self, hidden))}
    module.__class__ = type("Own", (type(module),), own)


def attention(model, steering):
    weights = torch.arange(1, ROWS + 1)[:, None, None, None] * 0.7

    def per_row(*arguments, **settings):
        output, *rest = AttentionInterface()["sdpa"](*arguments, **settings)
        return (output * weights, *rest)

    AttentionInterface.register("per_row", per_row)
    AttentionMaskInterface.register("per_row", AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("per_row")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (wrapped, "model.norm is a OwnNorm, whose forward may index rows"),
        (subclassed, "model.norm is a Own, whose forward may index rows"),
        (functools.partial(subclassed, method="__call__"), "model.norm is a Own, whose forward may index rows"),
        (
            lambda model, steering: subclassed(model, steering, module=model.model.embed_tokens),
            "model.embed_tokens is a Own, whose forward may index rows",
        ),
        (attention, "the attention function attention.<locals>.per_row of 'per_row' may index rows"),
    ],
    ids=["wrapper", "forward", "call", "embedding", "attention"],
)
def test_layers_and_attention_functions_of_others(attach, reason, architecture):
    model = build(architecture)
    attach(model, Steering(32))
    unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "sample_only")
    assert torch.equal(unpatched, patched)
    with ak.patched(model, MODES):
        model.generate(**six_rows())
        assert ak.last_stats(model).reason == reason


class TestLayersThatIndexNoRows:
    def test_a_class_vouched_for(self):
        model = build("llama")
        wrapped(model, lambda module, args, output: output * 2)
        assert "OwnNorm" in row_hook_reason(model)
        own = ak.row_independent(type("Doubled", (OwnNorm,), {}))
        model.model.norm.__class__ = own
        assert row_hook_reason(model) is None
        unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "full")
        assert torch.equal(unpatched, patched)

    def test_a_model_and_its_layers_from_one_place(self):
        """An architecture of the caller's own is taken as it is written."""
        model = build("llama")
        model.__class__ = type("Mine", (type(model),), {"__module__": __name__})
        subclassed(model, lambda module, args, output: output)
        assert row_hook_reason(model) is None

    @pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "VeraConfig"])
    def test_adapters(self, kind):
        peft = pytest.importorskip("peft")
        targets = {"target_modules": ["q_proj", "v_proj"]}
        targets |= {"feedforward_modules": []} if kind == "IA3Config" else {}
        model = peft.get_peft_model(build("llama"), getattr(peft, kind)(**targets)).eval()
        assert row_hook_reason(model.get_base_model()) is None


class TestHooksThatIndexNoRows:
    def test_vouched_for(self):
        model = build("llama")
        vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
        model.model.layers[0].register_forward_hook(ak.row_independent(lambda module, args, out: out + vector))
        unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "full")
        assert torch.equal(unpatched, patched)

    def test_gradients_of_inputs(self):
        model = build("llama")
        model.enable_input_require_grads()
        assert row_hook_reason(model) is None

    def test_the_models_own_output_capturing(self):
        model = build("llama")
        model(prompts(2, 4), output_hidden_states=True, output_attentions=True)
        assert row_hook_reason(model) is None

    def test_weight_norm(self):
        model = build("llama")
        torch.nn.utils.spectral_norm(model.lm_head)
        assert row_hook_reason(model.eval()) is None

    def test_accelerates_dispatch(self):
        hooks = pytest.importorskip("accelerate.hooks")
        model = build("llama")
        hooks.add_hook_to_module(model.lm_head, hooks.AlignDevicesHook(execution_device="cpu"))
        assert row_hook_reason(model) is None

    def test_ours(self):
        pytest.importorskip("trl")
        from adapt_kernels.trl.policy_head import add_policy_head

        model = build("llama")
        add_policy_head(model)
        assert row_hook_reason(model) is None


@pytest.mark.parametrize("names", [["a", "b", "a", "__base__", "b", "a"], ["a"] * 3 + ["b"] * 3])
def test_peft_adapter_names(names):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(build("llama"), config, adapter_name="a")
    model.add_adapter("b", config)
    model.eval()
    unpatched = model.generate(**six_rows(), adapter_names=names)
    with ak.patched(model, ak.Modes(fast=FAST, slow=SLOW)):
        patched = model.generate(**six_rows(), adapter_names=names)
        stats = ak.last_stats(model)
        assert torch.equal(patched, unpatched)
        assert stats.plan == "sample_only" and "_adapter_names_pre_forward_hook" in stats.reason
        # Without names nothing is left behind.
        model.generate(**six_rows())
        assert ak.last_stats(model).plan == "full"
