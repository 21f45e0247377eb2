"""Reading a Hugging Face config.json: every needed key is there, every value this transformer cannot honor is an error."""

from __future__ import annotations

import math
from typing import Any

from dat_jax.models.config import RopeScaling

Fields = dict[str, Any]

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


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
    return RopeScaling(
        "longrope",
        factor=float(stretch),
        original_length=original,
        short_factors=tuple(float(x) for x in need(parameters, "short_factor")),
        long_factors=tuple(float(x) for x in need(parameters, "long_factor")),
        attention_factor=float(attention_factor),
    )
