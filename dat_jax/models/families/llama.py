"""Llama 2, 3, 3.1 and 3.2, and what is built like them: Mistral and Zephyr, Qwen 2.5 (biases) and Qwen 3 (normalized queries)."""

from __future__ import annotations

from typing import Any

from dat_jax.models.config import ModelConfig
from dat_jax.models.families.fields import Fields, activation, local_layers, need, only, rope, written
from dat_jax.models.families.names import llama_names

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
names = llama_names


def read(fields: Fields) -> ModelConfig:
    """Map transformers' LlamaConfig, MistralConfig, Qwen2Config or Qwen3Config (as a dictionary) to a ModelConfig."""
    model_type = need(fields, "model_type")
    only(fields, {"attention_bias": False, "mlp_bias": False})
    return ModelConfig(**shape(fields), model_type=model_type, qkv_bias=model_type == "qwen2", qk_norm=model_type == "qwen3")


def shape(fields: Fields) -> dict[str, Any]:
    """Return the arguments of ModelConfig that all configs with Llama's key names share."""
    theta, scaling = rope(fields, need(fields, "rope_parameters"))
    return {
        "vocab_size": need(fields, "vocab_size"),
        "width": need(fields, "hidden_size"),
        "layers": need(fields, "num_hidden_layers"),
        "heads": need(fields, "num_attention_heads"),
        "kv_heads": fields.get("num_key_value_heads") or 0,
        "head_dim": fields.get("head_dim") or 0,
        "mlp_width": need(fields, "intermediate_size"),
        "activation": activation(fields),
        "norm_epsilon": need(fields, "rms_norm_eps"),
        "tied_head": bool(fields.get("tie_word_embeddings")),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding_window": fields.get("sliding_window") if local_layers(fields) else None,
        "local_layers": local_layers(fields),
        "max_length": fields.get("max_position_embeddings") or 0,
    }


def describe(config: ModelConfig) -> Fields:
    """Return the config.json of a model made here, so that transformers loads it as a LlamaForCausalLM."""
    if config.model_type != "llama" or config.rope_scaling or config.local_layers or config.qkv_bias or config.qk_norm:
        raise ValueError(f"a new {config.model_type!r} model cannot be written; plain Llama can")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **written(config),
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
