"""adapt_kernels: mode-gated decoding. One call turns a reasoning model's thinking up or down.

Names load on first use, so `import adapt_kernels` needs neither a GPU nor transformers, triton or a compiler.

.. include:: examples.md
"""

from importlib import import_module

from adapt_kernels.version import __version__ as __version__

_HOME = {
    "Mode": "modes",
    "Modes": "modes",
    "ModeSample": "ops.mode_sample",
    "FLAG_EMPTY": "ops.mode_sample",
    "FLAG_INF": "ops.mode_sample",
    "FLAG_NAN": "ops.mode_sample",
    "mode_sample": "ops.mode_sample",
    "KeepKV": "program.keep",
    "kept_positions": "program.keep",
    "Program": "program.program",
    "Span": "program.rules",
    "Paths": "program.paths",
    "Bar": "program.paths",
    "Agree": "program.votes",
    "vote": "program.votes",
    "PrefixScorer": "hf",
    "token_logprobs": "ops.token_logprobs",
    "policy_loss": "ops.policy_loss",
    "PolicyLoss": "ops.policy_loss",
    "linear_policy_loss": "ops.linear_policy_loss",
    "efficiency_bonus": "advantages",
    "adapt_advantages": "advantages",
    "Advantages": "advantages",
    "row_seed": "philox_reference",
    "backends": "dispatch",
    "patch": "hf",
    "unpatch": "hf",
    "patched": "hf",
    "last_stats": "hf",
    "row_independent": "hf",
    "ModeBias": "hf",
    "calibrate": "hf",
    "Calibration": "hf",
    "GenerateStats": "hf",
    "ModeGenerateOutput": "hf",
    "TokenScorer": "hf",
}

_MODULES = ("schemes",)

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"adapt_kernels.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'adapt_kernels' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"adapt_kernels.{_HOME[name]}"), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise ImportError(_needs_transformers(name, error)) from error
    globals()[name] = value
    return value


def _needs_transformers(name: str, error: ImportError) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return f"adapt_kernels.{name} needs transformers: pip install 'transformers>=5.17'"
    return (
        f"adapt_kernels.{name} cannot use transformers {installed} ({error}):"
        " pip install 'transformers>=5.17,<5.25', or install a newer adapt_kernels"
    )


def __dir__():
    return sorted({*globals(), *__all__})
