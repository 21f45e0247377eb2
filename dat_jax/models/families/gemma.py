"""Gemma 1, 2 and 3 (text): scaled embeddings, norms by 1 + weight; later also norms after sublayers, windows and soft-caps."""

from __future__ import annotations

import math
from typing import Any

from dat_jax.models.config import ModelConfig
from dat_jax.models.families import llama
from dat_jax.models.families.fields import Fields, activation, need, only, rope
from dat_jax.models.families.names import Names, llama_names

MODEL_TYPES = ("gemma", "gemma2", "gemma3_text")
names = llama_names


def read(fields: Fields) -> ModelConfig:
    """Map transformers' GemmaConfig, Gemma2Config or Gemma3TextConfig (as a dictionary) to a ModelConfig."""
    model_type = need(fields, "model_type")
    only(fields, {"attention_bias": False, "use_bidirectional_attention": False})
    changes: dict[str, Any] = {}
    fields = dict(fields)
    if model_type == "gemma3_text":
        near, far = (need(need(fields, "rope_parameters"), kind) for kind in ("sliding_attention", "full_attention"))
        changes["rope_local_theta"], scaling = rope(fields, near)
        if scaling is not None:
            raise ValueError(f"rope_scaling of sliding layers is {near!r}; supported: none")
        fields["rope_parameters"] = far
    if model_type != "gemma":
        fields["hidden_act"] = need(fields, "hidden_activation")
        changes |= {
            "post_norms": True,
            "query_scale": need(fields, "query_pre_attn_scalar") ** -0.5,
            "attention_softcap": fields.get("attn_logit_softcapping"),
            "logit_softcap": fields.get("final_logit_softcapping"),
        }
    shape = llama.shape(fields) | {"activation": activation(fields)}
    return ModelConfig(
        **shape,
        **changes,
        model_type=model_type,
        qk_norm=model_type == "gemma3_text",
        norm_plus_one=True,
        embedding_scale=math.sqrt(need(fields, "hidden_size")),
    )


def multimodal_names(config: ModelConfig) -> Names:
    """Return where the text model lies in a Gemma 3 checkpoint that also has a vision tower."""
    return llama_names(config, "language_model.model.")
