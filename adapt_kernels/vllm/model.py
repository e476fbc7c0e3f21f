"""What of an engine's configuration says which modes and programs it serves, and what it cannot honour."""

from functools import cache
from pathlib import Path

from adapt_kernels import env
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import Settings

PROCESSOR = "adapt_kernels.vllm:ModeProcessor"


_HERE: list[Served] = []


def serve_here(served: Served | None) -> None:
    """From now on every engine of this process serves this; None: each its own again."""
    _HERE[:] = [] if served is None else [served]


def served_model(vllm_config) -> Served:
    """The modes and programs beside the model, or those that the environment names."""
    if _HERE:
        return _HERE[0]
    model = vllm_config.model_config
    eos = _eos_ids(model)
    told = (env.get("ADAPT_KERNELS_MODES"), env.get("ADAPT_KERNELS_PROGRAMS"))
    return _served(str(model.model), str(model.tokenizer or model.model), eos, told)


@cache
def _served(folder: str, tokenizer: str, eos_ids: tuple[int, ...], told) -> Served:
    def load():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tokenizer, local_files_only=Path(tokenizer).is_dir())

    return Served.of_folder(folder, eos_ids, load)


def _eos_ids(model) -> tuple[int, ...]:
    generation = model.try_get_generation_config() or {}
    found = (generation.get("eos_token_id"), getattr(model.hf_text_config, "eos_token_id", None))
    listed = [each if isinstance(each, (list, tuple)) else [each] for each in found if each is not None]
    return tuple(sorted({int(token) for each in listed for token in each}))


def sampling_params(settings: dict, **own):
    """vLLM's parameters of a request with these settings of ours."""
    from vllm import SamplingParams

    return SamplingParams(extra_args=settings, **own)


def is_newer_runner(vllm_config) -> bool:
    """Whether vLLM runs its newer model runner (V2)."""
    return bool(vllm_config.use_v2_model_runner)


def drafts(vllm_config) -> int:
    """Tokens that a step drafts for each row, 0 without speculation."""
    speculation = vllm_config.speculative_config
    return 0 if speculation is None else int(speculation.num_speculative_tokens or 0)


def check_engine(vllm_config, settings: Settings) -> None:
    """Raises ValueError for settings that the engine's own set-up would drop."""
    if is_newer_runner(vllm_config):
        return
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "the older model runner drops logits processors under speculative decoding: start the server without"
            " VLLM_USE_V2_MODEL_RUNNER=0, or without speculation"
        )
    given = [str(each) for each in vllm_config.model_config.logits_processors or ()]
    reads = settings.program is not None or settings.thinking_budget is not None
    if reads and vllm_config.scheduler_config.async_scheduling and not any("ModeProcessor" in each for each in given):
        raise ValueError(
            "the older model runner shows tokens to processors of the command line only: start the server with"
            f" --logits-processors {PROCESSOR}, or with --no-async-scheduling"
        )
