"""Small random models of every architecture of the installed transformers, shrunk from its default config.

No table of sizes per model: names of settings mean the same in most configs, so one rule per name does. What that does
not reach is in small_configs.py.
"""

import warnings
from functools import lru_cache

import torch
from small_configs import NOT_BUILT, OVERRIDES
from tiny_models import EOS, PAD, VOCAB, reinitialise
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _HEAD, _POSITIONS, _WINDOW = 32, 2, 4, 2, 8, 256, 6

# Setting -> its small value, where a config has the setting and its default is not None.
_SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "embedding_size"), _HIDDEN),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "lru_width"), _HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "dff", "dim_ff", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "feed_forward_size", "ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "shared_experts_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads", "num_encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "swa_num_attention_heads", "linear_num_value_heads"), _HEADS),
    **dict.fromkeys(("linear_num_heads", "index_n_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), _KV_HEADS),
    **dict.fromkeys(("linear_num_key_heads",), _KV_HEADS),
    **dict.fromkeys(("head_dim", "d_head", "dim_head", "d_kv", "attention_head_dim", "swa_head_dim"), _HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "kv_channels"), _HEAD),
    **dict.fromkeys(("index_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), _HEAD),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "expert_capacity"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), _POSITIONS),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "model_max_length"), _POSITIONS),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), _POSITIONS),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "keep_window_size"), _WINDOW),
    **dict.fromkeys(("window_size", "local_attention", "attention_chunk_size"), _WINDOW),
    **dict.fromkeys(("index_topk", "index_topk_blocks"), 4),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("num_nextn_predict_layers",), 0),
    **dict.fromkeys(("image_size",), 16),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "src_vocab_size", "tgt_vocab_size"), VOCAB),
    **dict.fromkeys(("vocab_size_per_layer_input", "unpadded_vocab_size"), VOCAB),
}
# Lists with an entry per layer: the small model gets each kind once.
_KINDS = ("layer_types", "layers_block_type", "block_types", "attention_layers", "attn_layers")
_KINDS_BESIDE = ("mlp_layer_types", "indexer_types")
_TOKENS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2, "decoder_start_token_id": PAD}


def architectures() -> list[str]:
    """Model types with a causal head, then those that only have an encoder-decoder one."""
    return list(dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]))


def settings(architecture: str) -> dict:
    """Arguments of the small config."""
    try:
        default = AutoConfig.for_model(architecture)
    except Exception:  # a config that does not accept its own defaults
        default = PreTrainedConfig()
    return _shrunk(default, architecture)


def build(architecture: str, seed: int = 0, attention: str | None = None):
    """A model in eval mode whose weights are drawn anew. Raises where it cannot be built small."""
    if architecture in NOT_BUILT:
        raise ValueError(NOT_BUILT[architecture])
    config = AutoConfig.for_model(architecture, **settings(architecture))
    factory = AutoModelForCausalLM if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForSeq2SeqLM
    if config.is_encoder_decoder and architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        factory = AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = factory.from_config(config, attn_implementation=attention, dtype=torch.float32)
        reinitialise(model)
    return model.eval()


@lru_cache(maxsize=1024)
def shared(architecture: str, attention: str | None = None, seed: int = 0):
    """One model per process, for those that leave it as they found it."""
    return build(architecture, seed, attention)


def _shrunk(config: PreTrainedConfig, architecture: str) -> dict:
    given = vars(config)
    small = {name: value for name, value in _SIZES.items() if given.get(name) is not None}
    small |= {name: value for name, value in _TOKENS.items() if name in given}
    small |= {n: _shrunk(v, v.model_type) for n, v in given.items() if isinstance(v, PreTrainedConfig)}
    small |= {name: 0.0 for name, value in given.items() if "drop" in name and isinstance(value, float)}
    if "tie_word_embeddings" in given:
        small["tie_word_embeddings"] = False
    if small.get("kv_lora_rank"):
        small |= {name: _HEADS for name in ("num_key_value_heads",) if name in small}
    if config.is_encoder_decoder:
        small["decoder_start_token_id"] = PAD
    return _merged(small | _layer_lists(given), OVERRIDES.get(architecture, {}))


def _layer_lists(given: dict) -> dict:
    lists = {n: list(dict.fromkeys(given[n])) for n in (*_KINDS, *_KINDS_BESIDE) if given.get(n)}
    if not lists:
        return {}
    layers = max(_LAYERS, *map(len, lists.values()))
    lists = {name: kinds + kinds[-1:] * (layers - len(kinds)) for name, kinds in lists.items()}
    counted = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return lists | {name: layers for name in counted if name in given}


def _merged(base: dict, over: dict) -> dict:
    merged = dict(base)
    for name, value in over.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged
