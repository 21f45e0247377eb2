"""Dream-7B: a masked-diffusion LM grown out of Qwen 2.5, so its logits still predict the token after their position.

Models adapted here from other causal LMs (`dat_jax.diffusion.adapt`) have three keys more, which Dream's own files lack: `qkv_bias` and
`logit_shift` (true where absent), `qk_norm` (false where absent).
"""

from __future__ import annotations

import dataclasses

from dat_jax.models.config import ModelConfig, RopeScaling
from dat_jax.models.families import llama
from dat_jax.models.families.fields import Fields, need, only, written
from dat_jax.models.families.names import llama_names

MODEL_TYPES = ("Dream",)
names = llama_names


def read(fields: Fields) -> ModelConfig:
    """Map Dream's config.json to a ModelConfig."""
    only(fields, {"use_sliding_window": False})
    parameters = {"rope_theta": need(fields, "rope_theta"), **(fields.get("rope_scaling") or {})}
    shape = llama.shape({**fields, "rope_parameters": parameters, "sliding_window": None})
    mask = need(fields, "mask_token_id")
    switches: Fields = {"qkv_bias": True, "qk_norm": False, "logit_shift": True}
    switches = {key: default if fields.get(key) is None else fields[key] for key, default in switches.items()}
    return ModelConfig(**shape, **switches, model_type="Dream", causal=False, mask_token=mask)


def adapted(config: ModelConfig, mask_token: int, logit_shift: bool, positions: int) -> ModelConfig:
    """Return the Dream that a causal LM of this config becomes, its vocabulary grown to hold the mask token.

    positions: length of the rows it will see. Raises ValueError for a model that is no causal LM, or none that Dream's layout can hold.
    """
    if config.mask_token is not None or not config.causal:
        raise ValueError(f"a {config.model_type!r} model is a masked-diffusion LM already; use it as config.sampler.model")
    if config.model_type not in llama.MODEL_TYPES:
        raise ValueError(f"a {config.model_type!r} model does not fit Dream's layout; allowed: {', '.join(llama.MODEL_TYPES)}")
    if config.rope_scaling and config.rope_scaling.kind not in ("linear", "llama3"):
        raise ValueError(f"rope_scaling of type {config.rope_scaling.kind!r} is not written; allowed: 'linear', 'llama3'")
    if config.sliding_window is not None and config.sliding_window < positions:
        raise ValueError(f"rows of {positions} positions do not fit sliding_window={config.sliding_window}, which Dream's layout lacks")
    rows = max(config.vocab_size, -(-(mask_token + 1) // 8) * 8)  # a round number of rows, for meshes
    return dataclasses.replace(
        config, vocab_size=rows, model_type="Dream", causal=False, logit_shift=logit_shift, mask_token=mask_token, sliding_window=None,
        local_layers=(),
    )  # fmt: skip


def describe(config: ModelConfig) -> Fields:
    """Return the config.json of a Dream made here, with the keys of the published one and the three of the module's first lines."""
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        **written(config),
        "rope_scaling": _scaling(config.rope_scaling),
        "sliding_window": None,
        "use_sliding_window": False,
        "mask_token_id": config.mask_token,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "logit_shift": config.logit_shift,
    }


def _scaling(scaling: RopeScaling | None) -> Fields | None:
    if scaling is None:
        return None
    fields: Fields = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return fields
