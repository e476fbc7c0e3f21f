"""LoRA adapters that give a pretrained model two modes: built for training, saved small, put on their own model only.

The folder of an adapter holds adapter_config.json and adapter_model.safetensors as PEFT writes them (without the
embedding, which PEFT would add because its vocabulary grew), base.json, modes.json and generation_config.json.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import adapt_kernels as ak
from adapt_recipes import adapter_path, extras
from adapt_recipes.smollm2 import default_directory
from adapt_recipes.storage import write_tensors
from adapt_recipes.tasks.problem import FAST_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.words import MAX_NEW_TOKENS

SMOLLM2 = "smollm2"
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
# The three tokens, each with the word whose embedding its own begins as.
MODE_WORDS = {FAST_TOKEN: " answer", SLOW_TOKEN: " think", SLOW_END_TOKEN: " so"}
# The model's own chat format without its default system message, which would be a third of every prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a model."""
    return (folder / CONFIG).is_file()


def adapter_folder(name: str) -> Path:
    """The folder of the shipped adapter called `name`, or that of the fetched SmolLM2 itself; ValueError for others."""
    return base_folder(name) if name == SMOLLM2 else adapter_path(name)


def base_folder(base: str) -> Path:
    """The folder of a base model: "smollm2" where `fetch` left it, or a path. ValueError, saying how to get it."""
    folder = default_directory() if base == SMOLLM2 else Path(base)
    if not (folder / "config.json").is_file():
        how = "`adapt fetch-smollm2` downloads it" if base == SMOLLM2 else "expected a local model folder"
        raise ValueError(f"the base model {base} is not in {folder}: {how}")
    return folder


def base_of(folder: Path) -> Path:
    """The folder of the model that the adapter in `folder` was trained on; ValueError if it is not there."""
    return base_folder(base_name(folder))


def base_name(folder: Path) -> str:
    """How the adapter in `folder` names that model."""
    return _told(folder)["base"]


def add_mode_tokens(tokenizer: Any) -> Any:
    """The tokenizer with the three mode tokens, which decoding keeps readable, and the short chat template."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in MODE_WORDS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def grow_embedding(model: Any, tokenizer: Any) -> Any:
    """The model with a row for every token of `tokenizer`; a mode token begins as its word of `MODE_WORDS`."""
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        for token, word in MODE_WORDS.items():
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            rows[tokenizer.convert_tokens_to_ids(token)] = rows[ids].mean(dim=0)
    return model


def new_adapter(model: Any, tokenizer: Any, rank: int, alpha: float, seed: int) -> Any:
    """A PEFT model around `model`: LoRA on every linear layer, and rows of their own for the mode tokens.

    model: as `grow_embedding` left it. seed: of LoRA's random half. Raises RuntimeError when peft is missing.
    """
    extras.require("peft", "lora", "an adapter")
    from peft import LoraConfig

    settings = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM",
        trainable_token_indices=tokenizer.convert_tokens_to_ids(list(MODE_WORDS)),
    )  # fmt: skip
    return _wrapped(model, settings, seed)


def load_adapter(model: Any, tokenizer: Any, folder: Path) -> Any:
    """The adapter in `folder` on its base `model`, as a PEFT model that can be trained on, in fp32.

    Raises ValueError when the adapter was trained on another model, is not whole, or lacks parts; RuntimeError when
    peft is missing.
    """
    extras.require("peft", "lora", "an adapter")
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    told, own = _told(folder), base_digest(model)
    if told["digest"] != own:
        raise ValueError(
            f"the adapter {folder} was trained on another model than the one in {base_of(folder)} (digest of its norm "
            f"weights {told['digest'][:12]}, here {own[:12]}): put that model there, or train the adapter anew"
        )
    tensors = _read_tensors(folder / WEIGHTS)
    settings = LoraConfig.from_pretrained(str(folder))
    settings.inference_mode = False
    wrapped = _wrapped(grow_embedding(model, tokenizer), settings, seed=0)
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    ours, theirs = ({name: tuple(value.shape) for name, value in each.items()} for each in (expected, tensors))
    if ours != theirs:
        name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {name} has shape {theirs.get(name)}, "
            f"expected {ours.get(name)} (None: absent)"
        )
    set_peft_model_state_dict(wrapped, tensors)
    return wrapped


def merged(wrapped: Any, folder: Path) -> Any:
    """The plain model of a PEFT model with its adapter in its weights, and the generation settings of `folder`."""
    from transformers import GenerationConfig

    model = wrapped.merge_and_unload()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def save_adapter(wrapped: Any, tokenizer: Any, out: Path, base: str) -> None:
    """Write a PEFT model's adapter in bf16, its base, its modes and its generation settings into the folder `out`."""
    from peft import get_peft_model_state_dict
    from transformers import GenerationConfig

    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors({name: value.to(torch.bfloat16) for name, value in tensors.items()}, out / WEIGHTS)
    settings = wrapped.peft_config["default"].to_dict()
    settings |= {"base_model_name_or_path": base, "inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, whose order is another in every process
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    (out / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
    (out / BASE).write_text(json.dumps({"base": base, "digest": base_digest(wrapped)}, indent=2) + "\n")
    mode_token_modes(tokenizer).save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    ).save_pretrained(out)  # fmt: skip


def mode_token_modes(tokenizer: Any) -> ak.Modes:
    """`<answer>` is fast, `<think>` is slow, and `</think>` closes it."""
    return ak.Modes.from_tokenizer(tokenizer, fast=FAST_TOKEN, slow=SLOW_TOKEN)


def base_digest(model: Any) -> str:
    """What tells base models apart: a hash of all norm weights, which no adapter changes, in their order."""
    found = sha256()
    for name, value in model.named_parameters():
        if "norm" in name:
            found.update(value.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def _wrapped(model: Any, settings: Any, seed: int) -> Any:
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)


def _told(folder: Path) -> dict[str, str]:
    path = folder / BASE
    try:
        told = json.loads(path.read_text("utf-8"))
        return {"base": told["base"], "digest": told["digest"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must say what the adapter was trained on (base, digest): {error}") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not whole ({error}): get the adapter again") from error
