"""The model families: how each one's config.json and tensor names map to the one transformer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dat_jax.data.files import one_line
from dat_jax.models.config import ModelConfig
from dat_jax.models.families import dream, gemma, llada, llama, phi
from dat_jax.models.families.fields import check_values
from dat_jax.models.families.names import Names, Part

__all__ = ["Names", "Part", "describe", "family", "read"]

MODULES: tuple[ModuleType, ...] = (llama, phi, gemma, llada, dream)  # a new family is a file here and a row in this table
FAMILIES = {model_type: module for module in MODULES for model_type in module.MODEL_TYPES}


def family(model_type: str) -> ModuleType:
    """Return the module of a family; ValueError naming an unknown model_type and the known ones."""
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {_supported()}")
    return FAMILIES[model_type]


def _supported() -> str:
    return f"{sorted(FAMILIES)} and the text part of 'gemma3'"


def read(fields: dict[str, Any]) -> ModelConfig:
    """Map the contents of a config.json to a ModelConfig.

    Families that transformers knows are first completed with its defaults, so files of any age read the same.
    """
    if not isinstance(fields.get("model_type"), str):
        raise ValueError(f"config.json has model_type={fields.get('model_type')!r:.80}; supported: {_supported()}")
    if fields["model_type"] == "gemma3":
        if not isinstance(fields.get("text_config", {}), dict):
            raise ValueError(f"config.json has text_config={fields['text_config']!r:.80}; allowed: an object")
        fields = {**fields.get("text_config", {}), "model_type": "gemma3_text"}
    check_values(fields)
    module = family(fields["model_type"])
    if module not in (llada, dream):
        from transformers import CONFIG_MAPPING  # takes seconds, and the diffusion LMs are not in it

        _check_rope(fields)
        try:
            fields = CONFIG_MAPPING[fields["model_type"]].from_dict(fields).to_dict()
        except Exception as error:  # its checks raise errors of many kinds, other ones with each release
            raise ValueError(f"config.json is none that transformers reads as {fields['model_type']!r}: {one_line(error)}") from error
    return module.read(fields)  # type: ignore[no-any-return]


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return a config.json for a model that was made here; ValueError for families that can only be loaded."""
    module = family(config.model_type)
    if not hasattr(module, "describe"):
        raise ValueError(f"a new {config.model_type!r} model cannot be written; 'llama', 'llada' and 'Dream' can")
    return module.describe(config)  # type: ignore[no-any-return]


def _check_rope(fields: dict[str, Any]) -> None:
    # transformers only warns about a kind it does not know, or fails far from the cause
    scaling = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if fields["model_type"] != "gemma3_text" and kind not in ("default", "linear", "llama3", "longrope", "su"):
        raise ValueError(f"rope_scaling of type {kind!r} is not supported; supported: 'default', 'linear', 'llama3', 'longrope'")
