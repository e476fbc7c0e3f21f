"""vLLM's newer model runner on a CPU: its Triton kernels run in Triton's interpreter. Call `prepare` before vLLM is
imported. Nobody has to do so with a GPU."""

import os
from types import SimpleNamespace


class _NoDriver:
    @staticmethod
    def is_active():
        return False


def prepare() -> None:
    """Set the environment, and name a backend for the CPU, which vLLM wants to see and the interpreter never asks."""
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    import triton.backends

    triton.backends.backends["cpu"] = SimpleNamespace(compiler=object, driver=_NoDriver)


def mend_sampler() -> None:
    """Once vLLM is imported: its top-k/top-p kernel uses what the interpreter lacks; the module has a plain form."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
    from vllm.v1.worker.gpu.sample import sampler, states

    for module in (sampler, states):
        module.apply_top_k_top_p = apply_top_k_top_p_pytorch
