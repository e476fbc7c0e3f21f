"""What a patched `generate` returns beside Hugging Face's own fields."""

from dataclasses import dataclass

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput


@dataclass(frozen=True)
class GenerateStats:
    """How one `generate` call was computed.

    plan: "full" (shared prefill, KV segments, finished rows leave), "sample_only" (Hugging Face's cache and batch, our
        sampler) or "original" (Hugging Face untouched).
    reason: why no faster plan was taken; "" under plan "full".
    kv_layout: of plan "full", where the prompts' KV lay at the end, "shared" or "rows"; kv_layout_reason: why "rows".
    row_steps: rows x decode forwards computed; row_steps_padded: what the unpatched loop would compute.
    prefill_tokens: prompt positions computed, padding included; kv_bytes_peak: bytes of the cache at its largest.
    With kv_keep: kv_held_peak, the counted positions that a row held at most; kv_evictions, how often some went;
    kv_keep_reason: why they never did, else "". With probe rules: probe_tokens, positions computed for them, not in
    row_steps.
    With cuda_graph: graph_captures, graph_replays: how often a step's forward was captured and replayed; graph_reason:
    why never, or no more, else "".
    The counts are None under plan "original", which is not observed.

    With paths: tokens_saved: what the rows it ended would have had, at most, if they had lasted as long as the call's
        longest row; score_tokens: positions computed for scores, not in row_steps; inactive: of the settings that
        changed nothing, why.
    """

    plan: str
    reason: str
    row_steps: int | None = None
    row_steps_padded: int | None = None
    prefill_tokens: int | None = None
    kv_bytes_peak: int | None = None
    probe_tokens: int | None = None
    tokens_saved: int | None = None
    score_tokens: int | None = None
    inactive: tuple[str, ...] = ()
    kv_held_peak: int | None = None
    kv_evictions: int | None = None
    kv_keep_reason: str = ""
    kv_layout: str | None = None
    kv_layout_reason: str = ""
    graph_captures: int | None = None
    graph_replays: int | None = None
    graph_reason: str = ""


@dataclass
class ModeGenerateOutput(GenerateDecoderOnlyOutput):
    """`GenerateDecoderOnlyOutput` with modes.

    modes: int8 [rows], index into `modes.names`, -1 = none. mode_probs: float32 [rows, M], the model's own at T = 1
    before any bias, renormalised over the modes; one-hot where the prompt already chose, 0 where no mode token was
    reached. logprobs: float32 [rows, T] under `return_logprobs=True`: of each new token after bias and temperature,
    before filters; 0 after a row's end. mode_logprobs: float32 [rows] with it, of the token at the gate over the whole
    vocabulary, after temperature, before bias; 0 in rows that had ended before. forced: bool [rows, T] with it, and
    with programs: tokens that were written whatever the model gave (a mode's prefix, suffix and closing, the token of a
    named mode, what rules force or put in a token's place). lengths: int64 [rows], new tokens of each row, its EOS
    included, padding not. stats: GenerateStats.

    With a program or a thinking_budget, whose rule is a row's last: fired: int32 [rows, rules of the row's programs,
    padded with -1], the steps at which each acted. spans: per row a list of (name, start, end, closed_by), generated
    positions [start, end), tags excluded; closed_by model, rule, break or end. never_armed: per row the rules whose
    `in` and `mode` never held, such as a budget of a thought that never began.

    prompt_of_row: int64 [rows] on the CPU, equal for rows of one prompt; prompt_length: columns of `sequences` before
    the new tokens. With paths: path_scores: float32 [rows], a row's latest score, NaN = unscored. path_ends: per row
    why it ended: finished, length, pruned, agreed or below.
    """

    modes: torch.Tensor | None = None
    mode_probs: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    forced: torch.Tensor | None = None
    mode_logprobs: torch.Tensor | None = None
    fired: torch.Tensor | None = None
    spans: list | None = None
    never_armed: list | None = None
    lengths: torch.Tensor | None = None
    prompt_of_row: torch.Tensor | None = None
    prompt_length: int | None = None
    path_scores: torch.Tensor | None = None
    path_ends: list | None = None
    stats: GenerateStats | None = None


_OUTPUTS_OF_STEPS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def asked_outputs(config) -> list[str]:
    """Settings by which a call returns something of every step and row."""
    return [name for name in _OUTPUTS_OF_STEPS if config.return_dict_in_generate and getattr(config, name)]


def cache_bytes(cache) -> int:
    """Bytes held by the tensors of a Hugging Face cache (all layers, attention and linear-attention states)."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    if any(part is not None for part in parts):
        return sum(cache_bytes(part) for part in parts if part is not None)
    return sum(tensor_bytes(vars(layer)) for layer in getattr(cache, "layers", []))


def tensor_bytes(value) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(tensor_bytes, value))
    return 0
