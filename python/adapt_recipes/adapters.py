"""LoRA adapters for SmolLM2 with two modes: built for training, saved small, and loaded on the model they belong to.

A folder of an adapter holds adapter_config.json and adapter_model.safetensors as PEFT writes them (without the
embedding, which PEFT would add because its vocabulary grew), modes.json, generation_config.json and a model card.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import adapt_kernels as ak
from adapt_recipes import extras
from adapt_recipes.smollm2 import default_directory
from adapt_recipes.tasks.problem import FAST_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.words import MAX_NEW_TOKENS

SMOLLM2 = "smollm2"
WEIGHTS, BASE = "adapter_model.safetensors", "base.json"

# The three tokens, each with the word whose embedding its own begins as.
MODE_WORDS = {FAST_TOKEN: " answer", SLOW_TOKEN: " think", SLOW_END_TOKEN: " so"}
# The model's own chat format without its default system message, which would be a third of every prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    """A PEFT model around `model`: LoRA on every linear layer, and rows of their own for the mode tokens."""
    extras.require("peft", "lora", "training an adapter")
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM",
        trainable_token_indices=tokenizer.convert_tokens_to_ids(list(MODE_WORDS)),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)


def mode_token_modes(tokenizer: Any) -> ak.Modes:
    """`<answer>` is fast and `<think>` is slow."""
    return ak.Modes.from_tokenizer(tokenizer, fast=FAST_TOKEN, slow=SLOW_TOKEN)


def base_folder(base: str) -> Path:
    """The folder of a base model: "smollm2" as `fetch` left it, or a path. ValueError, saying how to get it, if none."""
    folder = default_directory() if base == SMOLLM2 else Path(base)
    if not (folder / "config.json").is_file():
        how = "`adapt fetch-smollm2` downloads it" if base == SMOLLM2 else "expected a model folder"
        raise ValueError(f"the base model {base} is not in {folder}: {how}")
    return folder


def base_digest(model: Any) -> str:
    """What tells base models apart: a hash of their shapes and of all norm weights, which no adapter changes."""
    found = sha256()
    for name, value in model.named_parameters():
        if "norm" in name:
            found.update(value.detach().float().numpy().tobytes())
    found.update(json.dumps([model.config.hidden_size, model.config.num_hidden_layers]).encode())
    return found.hexdigest()


def save_adapter(model: Any, tokenizer: Any, out: Path, base: str) -> None:
    """Write a PEFT model's adapter in bf16, its modes and its generation settings into the folder `out`."""
    from peft import get_peft_model_state_dict
    from transformers import GenerationConfig

    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in tensors.items()}
    out.mkdir(parents=True, exist_ok=True)
    aside = out / (WEIGHTS + ".tmp")
    save_file(tensors, aside, metadata={"format": "pt"})
    os.replace(aside, out / WEIGHTS)
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(out)
    mode_token_modes(tokenizer).save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    ).save_pretrained(out)  # fmt: skip
    (out / BASE).write_text(json.dumps({"base": base, "digest": base_digest(model)}, indent=2) + "\n")
