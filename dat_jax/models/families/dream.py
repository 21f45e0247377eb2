"""Dream-7B: a masked-diffusion LM grown out of Qwen 2.5, so its logits still predict the token after their position."""

from __future__ import annotations

from dat_jax.models.config import ModelConfig
from dat_jax.models.families import llama
from dat_jax.models.families.fields import Fields, need, only
from dat_jax.models.families.names import llama_names

MODEL_TYPES = ("Dream",)
names = llama_names


def read(fields: Fields) -> ModelConfig:
    """Map Dream's config.json to a ModelConfig."""
    only(fields, {"use_sliding_window": False})
    parameters = {"rope_theta": need(fields, "rope_theta"), **(fields.get("rope_scaling") or {})}
    shape = llama.shape({**fields, "rope_parameters": parameters, "sliding_window": None})
    mask = need(fields, "mask_token_id")
    return ModelConfig(**shape, model_type="Dream", qkv_bias=True, causal=False, logit_shift=True, mask_token=mask)
