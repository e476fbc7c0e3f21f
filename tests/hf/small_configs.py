"""What small_models.py's rules do not reach, by architecture."""

from tiny_models import VOCAB

_ALL_HEADS = {"num_key_value_heads": 4}

# Settings on top of those of the rules. None: leave the setting to its default.
OVERRIDES: dict[str, dict] = {
    "blt": {"encoder_hash_byte_group_vocab": VOCAB},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cpmant": {"prompt_length": 4},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2}, "ffn_config": {"ffn_hidden_size": 48}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    # Its defaults make the sliding layers wide.
    "dots3_note_text": {**_ALL_HEADS, "per_layer_config": {1: {"kv_lora_rank": 8, "head_dim": 16, "v_head_dim": 12}}},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": None},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "led": {"attention_window": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "roc_bert": {"pronunciation_vocab_size": VOCAB, "shape_vocab_size": VOCAB, "shape_embed_dim": 8},
    "xlstm": {"num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}

# Why an architecture is left out.
NOT_BUILT: dict[str, str] = {
    **dict.fromkeys(("granite_speech", "granite_speech_plus", "vibevoice_asr"), "its audio encoder stays large"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "no text: its causal head builds only from pretrained parts"),
    **dict.fromkeys(("musicflamingo", "gemma4_assistant"), "its config does not accept its own defaults"),
    "nemo_speechlm": "its audio parts must agree in sizes that no rule knows; its text model is built by itself",
    "dots3_note": "its towers must agree in sizes that no rule knows; dots3_note_text is built",
    "gemma3n": "needs timm; gemma3n_text is built",
}
