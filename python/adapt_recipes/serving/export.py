"""A copy of a model folder that another engine can load: for vLLM on a CPU, attention heads of a size it knows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

# Of vLLM 0.32's CPU attention.
VLLM_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def export_for_vllm(folder: Path, out: Path) -> str:
    """Copy `folder` to `out`; what was changed, as a sentence. Raises ValueError for heads that cannot be re-laid.

    A head of d dims becomes one of m d, the others 0: RoPE's pair i, dims (i, d/2 + i), turns at the speed of the pair
    m i of the longer head and is laid there; queries grow by sqrt(m), as the longer head divides by more. Logits are
    the same but for rounding.
    """
    from safetensors.torch import load_file, save_file

    size = head_size(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name a new folder")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    if size in VLLM_CPU_HEAD_SIZES:
        return f"head size {size} is one that vLLM's CPU attention knows: the weights are as they were"
    longer = next((each for each in VLLM_CPU_HEAD_SIZES if each % size == 0), None)
    _check_layout(config, size, longer)
    for path in sorted(out.glob("*.safetensors")):
        tensors = {name: _relaid(name, tensor, size, longer) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {"head_dim": longer}, indent=2) + "\n", "utf-8")
    return f"heads of {size} dims re-laid as heads of {longer}, the others 0: the logits are the same but for rounding"


def head_size(folder: Path) -> int:
    """Dims of an attention head. Raises ValueError where the folder's config.json does not say."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "num_attention_heads" not in config:
        raise ValueError(f"{folder} is not a model folder: config.json with num_attention_heads expected")
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _check_layout(config: dict[str, Any], size: int, longer: int | None) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = config["model_type"] in ("llama", "qwen2", "mistral")
    if longer is None or size % 2 or kind != "default" or not known or "partial_rotary_factor" in (config | rope):
        raise ValueError(
            f"cannot re-lay heads of {size} dims of a {config['model_type']!r} model with RoPE {kind!r}: only llama,"
            f" qwen2 and mistral with plain RoPE, to one of {', '.join(map(str, VLLM_CPU_HEAD_SIZES))}"
        )


def _relaid(name: str, tensor: torch.Tensor, size: int, longer: int) -> torch.Tensor:
    part = next((p for p in ("q_proj", "k_proj", "v_proj", "o_proj") if f".{p}." in name), None)
    if part is None:
        return tensor
    by_heads = tensor.T if part == "o_proj" and tensor.ndim == 2 else tensor
    if part == "o_proj" and tensor.ndim == 1:
        return tensor  # its bias is of the hidden size
    heads, times = by_heads.unflatten(0, (-1, size)), longer // size
    laid = heads.new_zeros(heads.shape[0], longer, *heads.shape[2:])
    pair = torch.arange(size // 2)
    laid[:, times * pair], laid[:, longer // 2 + times * pair] = heads[:, : size // 2], heads[:, size // 2 :]
    laid = laid.flatten(0, 1) * (math.sqrt(times) if part == "q_proj" else 1.0)
    return (laid.T if part == "o_proj" else laid).contiguous()
