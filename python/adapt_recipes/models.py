"""Model folders: the shipped checkpoints, adapters, and any other of Hugging Face's format; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adapt_kernels as ak
from adapt_recipes import ADAPTERS, CHECKPOINTS, adapters, checkpoint_path

FALLBACK_MAX_NEW_TOKENS = 256  # for folders whose generation_config sets no limit


def model_folder(name: str) -> Path:
    """The shipped checkpoint or adapter called `name`, the fetched "smollm2", or else the local folder at that path."""
    if name in CHECKPOINTS:
        return checkpoint_path(name)
    if name in (*ADAPTERS, adapters.SMOLLM2):
        return adapters.adapter_folder(name)
    if Path(name).is_dir():
        return Path(name)
    known = ", ".join((*CHECKPOINTS, *ADAPTERS, adapters.SMOLLM2))
    raise ValueError(f"{name} is neither a model folder nor a shipped checkpoint; there is: {known}")


def load(folder: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder, ready for batches (left padding); nothing is ever downloaded.

    Raises ValueError naming the folder when it is not a model folder, or needs Python code of its own.
    """
    tokenizer = load_tokenizer(folder)
    return load_model(folder), tokenizer


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local model folder, padding on the left; ValueError as `load`."""
    from transformers import AutoTokenizer

    if adapters.is_adapter(Path(folder)):
        return adapters.add_mode_tokens(load_tokenizer(adapters.base_of(Path(folder))))
    _check_folder(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of model folder {folder}: {error}") from error
    for name in ("is_local", "local_files_only"):  # about this loading, not about the tokenizer: not to be saved
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: str | Path) -> Any:
    """The model of a local model folder, for inference, an adapter merged into it; ValueError as `load`."""
    from transformers import AutoModelForCausalLM

    if adapters.is_adapter(Path(folder)):
        return adapters.merged(load_trainable(folder), Path(folder))
    _check_folder(Path(folder))
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load model folder {folder}: {error}") from error


def load_trainable(folder: str | Path) -> Any:
    """As `load_model`, but an adapter stays apart from its model, which is frozen."""
    if not adapters.is_adapter(Path(folder)):
        return load_model(folder)
    base = load_model(adapters.base_of(Path(folder)))
    return adapters.load_adapter(base, load_tokenizer(folder), Path(folder))


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        lacks = "has no config.json" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"model folder {folder} {lacks}: expected a local folder with config.json, *.safetensors and tokenizer "
            "files, as save_pretrained writes it (nothing is downloaded)"
        )
    _refuse_own_code(folder)


def _refuse_own_code(folder: Path) -> None:
    """transformers would ask on a terminal whether to run such code; here the answer is always no."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ValueError(f"{path} asks for Python code from the model folder (auto_map), which is never run here")


def load_modes(folder: str | Path, tokenizer: Any, fast: str | None, slow: str | None) -> ak.Modes:
    """The modes named by their opening texts, or those the model folder brings in its modes.json."""
    if fast is not None and slow is not None:
        return ak.Modes.from_tokenizer(tokenizer, fast=fast, slow=slow)
    if fast is not None or slow is not None:
        raise ValueError("--fast and --slow go together: give the opening text of both modes")
    if not (Path(folder) / "modes.json").is_file():
        raise ValueError(
            f"{folder} brings no modes.json: say how the modes begin, such as --fast '<answer>' --slow '<think>'"
        )
    return ak.Modes.from_pretrained(folder)


def default_length(folder: Path) -> int:
    """max_new_tokens of the model's generation settings, or 256 where they have none."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return FALLBACK_MAX_NEW_TOKENS
    return GenerationConfig.from_pretrained(folder).max_new_tokens or FALLBACK_MAX_NEW_TOKENS


def require_vocabulary(tokenizer: Any, prompts: Sequence[str], folder: str | Path) -> None:
    """Raise ValueError when a prompt has words that the tokenizer of `folder` does not know."""
    for prompt in prompts:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokenizer(prompt)["input_ids"]:
            raise ValueError(
                f"the tokenizer of {folder} does not know every word of {prompt!r}: choose a model that "
                "was trained for this task"
            )
