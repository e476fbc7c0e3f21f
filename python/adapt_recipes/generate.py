"""Answer prompts with any Hugging Face model folder under a mode setting."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adapt_kernels as ak
from adapt_recipes.measure import Generated, count_tokens

FALLBACK_MAX_NEW_TOKENS = 256  # for folders whose generation_config sets no limit


def load(folder: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder, ready for batches (left padding); nothing is ever downloaded.

    Raises ValueError naming the folder when it is not a model folder, or needs Python code of its own.
    """
    tokenizer = load_tokenizer(folder)
    return load_model(folder), tokenizer


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local model folder, padding on the left; ValueError as `load`."""
    from transformers import AutoTokenizer

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
    """The model of a local model folder, for inference; ValueError as `load`."""
    from transformers import AutoModelForCausalLM

    _check_folder(Path(folder))
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load model folder {folder}: {error}") from error


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
        raise ValueError(f"{folder} brings no modes.json: say how the modes begin, such as --fast '<answer>' "
                         "--slow '<think>'")
    return ak.Modes.from_pretrained(folder)


def require_vocabulary(tokenizer: Any, prompts: Sequence[str], folder: str | Path) -> None:
    """Raise ValueError when a prompt has words that the tokenizer of `folder` does not know."""
    for prompt in prompts:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokenizer(prompt)["input_ids"]:
            raise ValueError(f"the tokenizer of {folder} does not know every word of {prompt!r}: choose a model that "
                             "was trained for this task")


def answer(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int | None = None,
           **arguments: Any) -> Generated:
    """Generate once for all `prompts` on a patched model; the tokenizer's chat template is used when it has one."""
    inputs = encode(tokenizer, prompts).to(model.device)
    if max_new_tokens is None and model.generation_config.max_new_tokens is None:
        max_new_tokens = FALLBACK_MAX_NEW_TOKENS
    if max_new_tokens is not None:
        arguments["max_new_tokens"] = max_new_tokens
    began = time.perf_counter()
    out = model.generate(**inputs, return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id, **arguments)
    wall_s = time.perf_counter() - began
    answers = out.sequences[:, inputs["input_ids"].shape[1] :]
    eos = model.generation_config.eos_token_id
    tokens = count_tokens(answers, [] if eos is None else eos)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return Generated(texts, tokens, out.modes.cpu(), out.mode_probs.cpu(), wall_s)


def encode(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Model inputs for `prompts`, each a user message of its own chat when the tokenizer has a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer(list(prompts), return_tensors="pt", padding=True)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
