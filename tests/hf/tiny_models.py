"""Tiny randomly initialised models of many architectures, built from configs without any download."""

import math
from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import adapt_kernels as ak

VOCAB = 97  # prime, not a multiple of any block
PAD, EOS = 0, 1
FAST, SLOW = 5, 6

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

# Model type -> what its config needs beyond the sizes above.
CONFIGS = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": {**_LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "phi3": {**_LLAMA, "head_dim": None},
    "olmo2": _LLAMA,
    "granite": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": {**_LLAMA, "rotary_pct": 0.5},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_LLAMA, **_EXPERTS},
    "gpt_oss": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "deepseek_v3": {
        **_LLAMA,
        "num_key_value_heads": 4,
        "head_dim": None,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
    "falcon_h1": {**_LLAMA, **_MAMBA, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "qwen3_next": {
        **_LLAMA,
        **_EXPERTS,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "jamba": {
        **_LLAMA,
        **_MAMBA,
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "lfm2": {**_LLAMA, "layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "recurrent_gemma": {
        **_LLAMA,
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 8,
        "block_types": ("recurrent", "recurrent", "attention"),
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD},
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "decoder_start_token_id": PAD,
        "forced_eos_token_id": None,
    },
}
# Seeds other than 0, chosen so that every row of test_tiny_models.py has at least 7 different tokens.
_SEEDS = {"llama": 2, "olmo2": 3, "gpt2": 1, "gpt_neox": 1, "opt": 1, "bloom": 1, "falcon": 2}
ENCODER_DECODER = ("t5", "bart")
DECODER_ONLY = tuple(name for name in CONFIGS if name not in ENCODER_DECODER)
# Covers full, sliding and latent attention, alibi, learned positions, sinks, experts and three kinds of state.
DEFAULT_RUN = (
    *("llama", "qwen3", "gemma3_text", "mistral", "gpt2", "gpt_neox", "opt", "mixtral", "gpt_oss", "deepseek_v3"),
    *("falcon_h1", "qwen3_next", "mamba", "bloom", "lfm2", "recurrent_gemma"),
)


def build(architecture: str, seed: int | None = None, **overrides):
    """A model in eval mode whose greedy output varies: every matrix re-initialised, embeddings untied."""
    settings = {k: v for k, v in CONFIGS[architecture].items() if v is not None}
    settings |= {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
    attention = overrides.pop("attn_implementation", None)
    settings |= {"tie_word_embeddings": False, **overrides}
    config = AutoConfig.for_model(architecture, **settings)
    factory = AutoModelForSeq2SeqLM if architecture in ENCODER_DECODER else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEEDS.get(architecture, 0) if seed is None else seed)
        model = factory.from_config(config, attn_implementation=attention)
        reinitialise(model)
    return model.eval()


@cache
def shared(architecture: str):
    """One model per architecture and process: only for tests that leave it as they found it."""
    return build(architecture)


def reinitialise(model) -> None:
    """Standard deviation sqrt(1.5 / fan_in): with the default one, a tiny model repeats a single token."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=math.sqrt(1.5 / parameter.shape[-1]))


def prompts(rows: int = 4, width: int = 6, seed: int = 0) -> torch.Tensor:
    """[rows, width] ids without pad, EOS or mode tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCAB, (rows, width), generator=generator)


def left_padded(ids: torch.Tensor, lengths) -> dict:
    """`generate` arguments for the same prompts cut to their last `lengths` tokens."""
    keep = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]
    return {"input_ids": ids.where(keep, PAD), "attention_mask": keep.long()}


def read_its_cache(model, monkeypatch):
    """The model, whose attention then looks at the cache beside what `update` gives it."""
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    @ak.row_independent
    def reading(*args, **kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        assert cache.layers[0].keys.shape[-2] == cache.get_seq_length(0)
        return forward(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", reading)
    return model
