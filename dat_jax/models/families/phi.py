"""Phi-3: Llama with one fused matrix for queries, keys and values and one for gate and up, and longrope on the long versions."""

from __future__ import annotations

from dat_jax.models.config import ModelConfig
from dat_jax.models.families import llama
from dat_jax.models.families.fields import Fields, only
from dat_jax.models.families.names import Names, Part, llama_names

MODEL_TYPES = ("phi3",)


def read(fields: Fields) -> ModelConfig:
    """Map transformers' Phi3Config (as a dictionary) to a ModelConfig."""
    only(fields, {"attention_bias": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0})
    return ModelConfig(**llama.shape(fields), model_type="phi3")


def names(config: ModelConfig) -> Names:
    """Return Llama's names with the fused tensors cut into their rows."""
    H, N, F = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.mlp_width
    fused, mlp = "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
    return llama_names(config) | {
        "layers/q": Part(fused, 0, H),
        "layers/k": Part(fused, H, H + N),
        "layers/v": Part(fused, H + N, H + 2 * N),
        "layers/gate": Part(mlp, 0, F),
        "layers/up": Part(mlp, F, 2 * F),
    }
