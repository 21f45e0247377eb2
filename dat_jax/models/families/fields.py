"""Reading a Hugging Face config.json: every needed key is there, every value this transformer cannot honor is an error."""

from __future__ import annotations

import math
from typing import Any

from dat_jax.models.config import ModelConfig, RopeScaling

Fields = dict[str, Any]

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# Integers, and the largest that is believed: above any model there is, and small enough that no slip of a digit allocates anything.
SIZES = {
    **dict.fromkeys(("vocab_size", "embedding_size", "intermediate_size", "mlp_hidden_size"), 1 << 24),
    **dict.fromkeys(("hidden_size", "d_model"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "max_window_layers", "sliding_window_pattern"), 1 << 12),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads", "n_kv_heads", "head_dim", "mlp_ratio"), 1 << 16),
    **dict.fromkeys(("max_position_embeddings", "max_sequence_length", "sliding_window", "original_max_position_embeddings"), 1 << 40),
}
POSITIVE = (
    "rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "partial_rotary_factor",
)  # fmt: skip
SWITCHES = (
    "tie_word_embeddings", "weight_tying", "attention_bias", "mlp_bias", "use_sliding_window", "multi_query_attention", "alibi", "rope",
    "use_bidirectional_attention", "qkv_bias", "qk_norm", "logit_shift",
)  # fmt: skip
NAMES = ("model_type", "hidden_act", "hidden_activation", "activation_type", "rope_type", "type")
LISTS = {"layer_types": str, "short_factor": float, "long_factor": float}
GROUPS = ("rope_scaling", "rope_parameters", "sliding_attention", "full_attention")  # objects with some of these keys in them
MULTIPLES = (("hidden_size", "num_attention_heads"), ("d_model", "n_heads"), ("num_attention_heads", "num_key_value_heads"),
             ("n_heads", "n_kv_heads"))  # fmt: skip


def check_values(fields: Fields, group: str = "") -> None:
    """Raise ValueError naming the first key of a config.json whose value no model can have; keys that are absent or null are fine.

    This comes before anything is computed from the values, or allocated for them.
    """
    for key, value in fields.items():
        if value is not None and (allowed := _allowed(key, value)):
            raise ValueError(f"config.json has {group}{key}={value!r:.80}; allowed: {allowed}")
        if key in GROUPS and value is not None:
            check_values(value, f"{group}{key}.")
    for key, part in MULTIPLES:
        whole, parts = fields.get(key), fields.get(part)
        if whole and parts and whole % parts and not (part in ("num_attention_heads", "n_heads") and fields.get("head_dim")):
            raise ValueError(f"config.json has {key}={whole}, which is not a multiple of {part}={parts}")
    layers, kinds = fields.get("num_hidden_layers"), fields.get("layer_types")
    if layers and kinds is not None and len(kinds) != layers:
        raise ValueError(f"config.json has layer_types of {len(kinds)} layers; allowed: num_hidden_layers={layers}")
    mask, rows = fields.get("mask_token_id"), fields.get("embedding_size") or fields.get("vocab_size")
    if mask is not None and not (_integer(mask) and mask >= 0 and (not rows or mask < rows)):
        raise ValueError(f"config.json has mask_token_id={mask!r:.80}; allowed: an id of the vocabulary, which has {rows}")
    if (low := fields.get("low_freq_factor")) is not None and low == fields.get("high_freq_factor"):
        raise ValueError(f"config.json has {group}low_freq_factor={low} and the same high_freq_factor; allowed: two different numbers")


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30


def _allowed(key: str, value: Any) -> str:
    """What a key's value may be, where this one is not."""
    if key in SIZES:
        return "" if _integer(value) and 1 <= value <= SIZES[key] else f"an integer from 1 to {SIZES[key]}"
    if key in POSITIVE:
        most = 1.0 if key == "rms_norm_eps" else 1e30
        return "" if _positive(value) and value < most else f"a number above 0 and below {most:g}"
    if key in SWITCHES:
        return "" if isinstance(value, bool) else "true or false"
    if key in NAMES:
        return "" if isinstance(value, str) else "a text"
    if key in GROUPS:
        return "" if isinstance(value, dict) else "an object"
    if key in LISTS:
        what = "texts" if LISTS[key] is str else "positive numbers"
        fine = isinstance(value, list) and all(isinstance(part, str) if LISTS[key] is str else _positive(part) for part in value)
        return "" if fine else f"a list of {what}"
    return ""


def written(config: ModelConfig) -> Fields:
    """Return what the config.json of a Llama-like model made here holds, whatever its family."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.max_length or 2048,
    }


def need(fields: Fields, key: str) -> Any:
    """Return the value of a key; ValueError when config.json lacks it or has null."""
    if fields.get(key) is None:
        raise ValueError(f"config.json (model_type {fields.get('model_type')!r}) has no {key!r}, which this family needs")
    return fields[key]


def only(fields: Fields, allowed: dict[str, Any]) -> None:
    """Raise ValueError when a key is present with another value than the one this transformer implements (absent or null is fine)."""
    for key, value in allowed.items():
        found = fields.get(key)
        if found is not None and found != value:
            raise ValueError(f"config.json (model_type {fields.get('model_type')!r}) has {key}={found!r}; supported: {value!r}")


def activation(fields: Fields, key: str = "hidden_act") -> str:
    """Return our name of the gate's nonlinearity."""
    name = need(fields, key)
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json has {key}={name!r}; supported: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def local_layers(fields: Fields) -> tuple[bool, ...]:
    """Return which layers see only the sliding window: as listed in layer_types, else all of them when a window is given."""
    if fields.get("sliding_window") is None:
        return ()
    kinds = fields.get("layer_types") or ["sliding_attention"] * need(fields, "num_hidden_layers")
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise ValueError(f"config.json has layer_types {unknown}; supported: 'sliding_attention', 'full_attention'")
    return tuple(kind == "sliding_attention" for kind in kinds) if "sliding_attention" in kinds else ()


def rope(fields: Fields, parameters: Fields) -> tuple[float, RopeScaling | None]:
    """Return the rotary base and its scaling from transformers' `rope_parameters` (or an older file's rope_scaling with rope_theta)."""
    theta = float(need(parameters, "rope_theta"))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rope_scaling has partial_rotary_factor={parameters['partial_rotary_factor']}; supported: 1.0")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", factor=float(need(parameters, "factor")))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            factor=float(need(parameters, "factor")),
            low_frequency_factor=float(need(parameters, "low_freq_factor")),
            high_frequency_factor=float(need(parameters, "high_freq_factor")),
            original_length=int(need(parameters, "original_max_position_embeddings")),
        )
    if kind == "longrope":
        return theta, _longrope(fields, parameters)
    raise ValueError(f"rope_scaling of type {kind!r} is not supported; supported: 'default', 'linear', 'llama3', 'longrope'")


def _longrope(fields: Fields, parameters: Fields) -> RopeScaling:
    original = int(need(parameters, "original_max_position_embeddings"))
    stretch = parameters.get("factor") or need(fields, "max_position_embeddings") / original
    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    pairs = (fields.get("head_dim") or need(fields, "hidden_size") // need(fields, "num_attention_heads")) // 2
    for key in ("short_factor", "long_factor"):
        if len(need(parameters, key)) != pairs:
            raise ValueError(f"config.json has a {key} of {len(parameters[key])} numbers; allowed: {pairs}, half of a head's size")
    return RopeScaling(
        "longrope",
        factor=float(stretch),
        original_length=original,
        short_factors=tuple(float(x) for x in need(parameters, "short_factor")),
        long_factors=tuple(float(x) for x in need(parameters, "long_factor")),
        attention_factor=float(attention_factor),
    )
