"""Code of others inside a model that may index the rows of a batch: with it, rows must stay where they are.

PEFT's `adapter_names`, steering vectors and probes with one entry per row live in hooks on submodules, in modules put
in the place of the model's own, or in attention functions: nothing in a call's inputs tells of them, and rows that were
merged, moved or dropped would meet another row's entry.
"""

from functools import cache, partial
from typing import Any

from torch.nn.modules import module as torch_module
from transformers import AttentionInterface

# What is known to treat every row alike: (beginning of the module it is defined in, end of its qualified name).
_ROW_INDEPENDENT_HOOKS = (
    ("torch.distributed.", ""),  # FSDP2, replicate
    ("torch.nn.utils.", ""),  # weight and spectral norm, pruning
    ("accelerate.", ""),
    ("adapt_kernels.", ""),
    ("transformers.utils.output_capturing", ""),
    ("transformers.", "make_inputs_require_grads"),
    ("peft.", "make_inputs_require_grad"),
    ("trl.", "make_inputs_require_grad"),
    ("trl.", "cast_outputs_to_original_dtype"),
)
# Packages that replace the forward of a module with one that treats every row alike.
_ROW_INDEPENDENT_FORWARDS = ("torch.", "transformers.", "accelerate.", "trl.", "kernels.", "adapt_kernels.")
# Packages whose layers are put in the place of a model's own: adapters, quantised weights, fused kernels.
_ROW_INDEPENDENT_LAYERS = (
    *(*_ROW_INDEPENDENT_FORWARDS, "peft.", "bitsandbytes.", "torchao.", "hqq.", "optimum.", "quanto.", "awq."),
    *("gptqmodel.", "auto_gptq.", "compressed_tensors.", "liger_kernel.", "flash_attn.", "xformers.", "fla."),
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def row_independent(hook):
    """Vouch that a forward hook treats every row of a batch by itself, whatever its place; returns it.

        layer.register_forward_hook(ak.row_independent(add_steering_vector))

    Without it a hook on a submodule keeps `generate` from merging, moving and dropping rows (plan "sample_only"), since
    it may hold one entry per row; so does one on the model itself that changes what goes in or out. hook: a function,
    or an object that takes attributes; also an attention function, and the class of a layer that was put in the place
    of one of the model's own.
    """
    hook.row_independent = True
    return hook


def row_hook_reason(model) -> str | None:
    """Why rows of this model's batches must stay in place: a hook or a forward that may index them; or None.

    Hooks on the model itself may be there to see the batch as it is computed: `model_hooks` watches them at work. The
    forward of the model's own class is the model, whatever it computes.
    """
    for names in _GLOBAL_HOOKS:
        for hook in getattr(torch_module, names).values():
            if not row_independent_hook(hook):
                return f"the forward hook {shown(hook)} of all modules may index rows"
    model_class: Any = type(model)
    homes = _packages(model_class)
    for name, module in model.named_modules():
        own = vars(module)
        for hooks in _HOOKS if module is not model else ():
            for hook in own[hooks].values() if own[hooks] else ():
                if not row_independent_hook(hook):
                    return f"the forward hook {shown(hook)} on {name} may index rows"
        if "forward" in own and not _is_row_independent(own["forward"], _FORWARDS):
            where = f" of {name}" if name else ""
            return f"the forward{where} was replaced with {shown(own['forward'])}, which may index rows"
        layer: Any = type(module)
        if module is not model and not _is_of_the_model(layer, homes):
            return f"{name} is a {layer.__qualname__}, whose forward may index rows"
    return _attention_reason(model, homes)


def row_independent_hook(hook) -> bool:
    """Whether a hook is known, or vouched for, to treat every row alike."""
    return _is_row_independent(hook, _ROW_INDEPENDENT_HOOKS)


def _attention_reason(model, homes) -> str | None:
    configs = (model.config, model.config.get_text_config(decoder=True))
    for name in dict.fromkeys(getattr(config, "_attn_implementation", None) for config in configs):
        function = AttentionInterface().get(name)
        if function is None or _is_row_independent(function, _LAYERS) or _home(function).split(".")[0] in homes:
            continue
        return f"the attention function {shown(function)} of {name!r} may index rows"
    return None


@cache
def _is_of_the_model(layer: Any, homes: frozenset[str]) -> bool:
    """Whether a layer's code is its model's, by the packages of both, or known to treat every row alike."""
    if getattr(layer, "row_independent", False):
        return True
    steps = (layer.forward, layer.__call__)
    return all(_is_row_independent(step, _LAYERS) or _home(step).split(".")[0] in homes for step in steps)


@cache
def _packages(model_class: type) -> frozenset[str]:
    """Top-level packages in which a model's classes are written: its own layers come from there too."""
    return frozenset(base.__module__.split(".")[0] for base in model_class.__mro__)


_FORWARDS = tuple((package, "") for package in _ROW_INDEPENDENT_FORWARDS)
_LAYERS = tuple((package, "") for package in _ROW_INDEPENDENT_LAYERS)


def _is_row_independent(function, known) -> bool:
    if getattr(function, "row_independent", False):
        return True
    home, name = _home(function), shown(function)
    return any(home.startswith(beginning) and name.endswith(end) for beginning, end in known)


def _inner(function):
    """What is called in the end: a method's function, a partial's."""
    while isinstance(function, partial) or hasattr(function, "__func__"):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def _home(function) -> str:
    """The module a function was written in; a wrapper's own, whatever it wraps."""
    inner = _inner(function)
    home = getattr(inner, "__globals__", {}).get("__name__") or type(inner).__module__
    return home + "."


def shown(function) -> str:
    """The name by which a message tells of a hook or a forward."""
    inner = _inner(function)
    return getattr(inner, "__qualname__", type(inner).__qualname__)
