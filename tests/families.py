"""A tiny random model of every family that the matrix of families tries.

Each is built from a configuration by Transformers' Auto classes, so nothing here depends on the
product. Windows are shorter than the sequences, dropout is on in every file, and the weights are
large enough that a wrong position, mask or state shows in the log-probabilities.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

DROPOUT = 0.1
# By the names that families give them; each takes those that it knows.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "dim": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "intermediate_size": 64,
    "hidden_dim": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "d_ff": 64,
    "d_inner": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "embedding_size": 32,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "initializer_range": 0.2,
    "attention_dropout": DROPOUT,
    "hidden_dropout": DROPOUT,
    "dropout": DROPOUT,
    "activation_dropout": DROPOUT,
    "attn_pdrop": DROPOUT,
    "embd_pdrop": DROPOUT,
    "emb_pdrop": DROPOUT,
    "resid_pdrop": DROPOUT,
    "layerdrop": DROPOUT,
    "attention_probs_dropout_prob": DROPOUT,
    "hidden_dropout_prob": DROPOUT,
    "classifier_dropout": DROPOUT,
    "residual_dropout": DROPOUT,
    "embedding_dropout": DROPOUT,
    "mlp_dropout": DROPOUT,
    "dropout_rate": DROPOUT,
    "router_jitter_noise": DROPOUT,
    "input_jitter_noise": DROPOUT,
    "seq_classif_dropout": DROPOUT,
    "summary_last_dropout": DROPOUT,
    "summary_first_dropout": DROPOUT,
}
LATENT: dict[str, Any] = {  # DeepSeek's attention
    "head_dim": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
ALTERNATING = ["sliding_attention", "full_attention"]
DELTA: dict[str, Any] = {  # gated delta rule beside attention
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}

# What a family needs besides; the key is a name for the table, its part before "/" the model type.
CAUSAL: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": ALTERNATING},
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA_2 | {"attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": {"layer_types": ALTERNATING},
    "cwm": {"layer_types": ALTERNATING},
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_jitter_eps": DROPOUT},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "attn_pdrop": DROPOUT}
        | {"rope_theta": 10000.0},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": {"attention_dropout": 0.0},
    "doge": {},
    "dots1": {"n_shared_experts": 1, "layer_types": ALTERNATING},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {"layer_types": ALTERNATING},
    "falcon": {},
    "falcon/alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon_h1": MAMBA_2 | {"mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"layer_types": ALTERNATING},
    "gemma3_text": {"layer_types": ALTERNATING},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"layer_types": ALTERNATING},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0},
    "granitemoe": {"logits_scaling": 2.0},
    "granitemoehybrid": MAMBA_2 | {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "jetmoe": {"kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {},
    "llama4_text": {"intermediate_size_mlp": 64, "layer_types": ["chunked_attention"] * 2}
    | {"attention_chunk_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": LATENT,
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "ministral": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {"layer_types": ALTERNATING},
    "olmo_hybrid": DELTA | {"linear_num_value_heads": 2},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 32},
    "opt/projected": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_text": DELTA,
    "qwen3_moe": {},
    "qwen3_next": DELTA,
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "attention_window_size": 8,
        "lru_width": 32,
        "w_init_variance_scale": 1.0,
    },
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {"layer_types": ALTERNATING},
    "xglm": {},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "chunk_size": 16},
    "youtu": LATENT,
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_d_state": 8,
        "n_mamba_heads": 2,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "adapter_rank": 4,
    },
    # No causal model, or none that stands alone: to be refused by name.
    "bert": {},
    "ctrl": {},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "feed_forward_size": 64,
        "num_buckets": 4,
        "num_hashes": 1,
    },
    "roberta": {"is_decoder": True},
    "xlm": {},
    "xlnet": {},
}

REWARD: dict[str, dict[str, Any]] = {
    "albert": {},
    "bart": {},
    "bert": {},
    "bloom": {},
    "deberta": {},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 16,
        "type_vocab_size": 0,
    },
    "distilbert": {},
    "electra": {},
    "eurobert": {},
    "falcon": {},
    "gemma": {},
    "gemma2": {"layer_types": ALTERNATING},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {"layer_types": ALTERNATING},
    "gptj": {"rotary_dim": 4},
    "jamba": CAUSAL["jamba"],
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {},
    "opt": {"word_embed_proj_dim": 32},
    "opt/projected": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "qwen3_next": DELTA,
    "roberta": {},
    "t5": {"decoder_start_token_id": 0},
    "xlm-roberta": {},
    "xlnet": {},
}


def model_type(name: str) -> str:
    """Transformers' name of a family; the table has several rows of some."""
    return name.partition("/")[0]


def make_config(name: str, extra: dict[str, Any], **more: Any) -> PretrainedConfig:
    """A small configuration of a family: as much of `SMALL` as it knows, and its own needs."""
    kind: Any = CONFIG_MAPPING[model_type(name)]
    known = set(inspect.signature(kind.__init__).parameters)
    known |= set(getattr(kind, "__dataclass_fields__", {})) | set(kind.attribute_map)
    settings = {key: value for key, value in SMALL.items() if key in known}
    if settings.get("head_dim") and model_type(name) in ("mamba2", "zamba", "zamba2", "nemotron_h"):
        del settings["head_dim"]
    made: PretrainedConfig = kind(**(settings | more | extra))
    return made


def speak_up(model: Any) -> None:
    """Weights large enough to have opinions, where a family's own start is too small for that."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            matrix = weight.dim() >= 2 and "A_log" not in name and "norm" not in name.lower()
            if matrix and float(weight.std()) < 0.15:
                weight.normal_(0.0, 0.2, generator=generator)


def causal_lm(name: str, tokenizer: Any) -> Any:
    """A language model of a family for a tokenizer's vocabulary."""
    torch.manual_seed(0)
    special = special_tokens(tokenizer)
    model = AutoModelForCausalLM.from_config(make_config(name, CAUSAL[name], **special))
    speak_up(model)
    return model.eval()


def reward_model(name: str, tokenizer: Any) -> Any:
    """A reward model of one output of a family for a tokenizer's vocabulary."""
    torch.manual_seed(1)
    special = special_tokens(tokenizer) | {"num_labels": 1}
    config = make_config(name, REWARD[name], **special)
    model = AutoModelForSequenceClassification.from_config(config)
    speak_up(model)
    return model.eval()


def special_tokens(tokenizer: Any) -> dict[str, Any]:
    """The part of a configuration that the tokenizer decides."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def save(model: Any, tokenizer: Any, folder: Path) -> str:
    """A folder as a user has it; returns its path."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
