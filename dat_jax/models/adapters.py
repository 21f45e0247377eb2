"""LoRA factors as a PEFT adapter folder, which transformers, vLLM and PEFT put on top of the base model: written and read."""

from __future__ import annotations

import json
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dat_jax.data import manifest
from dat_jax.data.files import read_json
from dat_jax.models import families, remote, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import MANIFEST
from dat_jax.models.lora import LINEAR, Lora
from dat_jax.models.tensors import finite, to_host

Array = np.ndarray[Any, Any]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an adapter may be beside factors of linear layers, and the value of each that leaves it just that.
PLAIN = {"use_dora": (None, False), "bias": (None, "none"), "fan_in_fan_out": (None, False), "modules_to_save": (None, [])}


def save_adapter(lora: Lora, config: ModelConfig, folder: str, base: str, base_dtype: str = "") -> None:
    """Write adapter_config.json and adapter_model.safetensors (float32) for a base model given by folder or hub id.

    base_dtype: the precision that the base had in training, told in the file's metadata: PEFT takes no key that it does not know.
    Where a checkpoint fuses matrices (Phi-3), the factors of the parts become one pair of as many times the rank: A stacked, B block
    by block, which is the same update. Every process calls this, process 0 writes.
    """
    names = families.family(config.model_type).names(config)
    fused: dict[str, list[str]] = {}
    for path in sorted((f"layers/{name}" for name in lora.factors), key=lambda path: names[path].first):
        fused.setdefault(names[path].name.removesuffix(".weight"), []).append(path.removeprefix("layers/"))
    host = jax.tree.map(to_host, lora.factors)
    if jax.process_index() != 0:
        return
    tensors, ranks = {}, {}
    for module, parts in fused.items():
        rank = sum(host[part]["a"].shape[2] for part in parts)
        ranks[module] = rank
        for layer in range(config.layers):
            key = "base_model.model." + module.format(layer)
            a, b = _pair([(host[part]["a"][layer], host[part]["b"][layer]) for part in parts])
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
    with remote.written(folder) as target:
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"} | ({"base_dtype": base_dtype} if base_dtype else {}))
        (target / WEIGHTS).chmod(0o644)
        (target / CONFIG).write_text(json.dumps(_config(lora, ranks, base), indent=2) + "\n")
        manifest.write(target / MANIFEST, {}, manifest.of_folder(target, lambda name: name.startswith("adapter_")))


def _pair(factors: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return PEFT's (rank, in) and (out, rank) matrices of one tensor from the (in, rank), (rank, out) factors of its parts."""
    a = np.concatenate([a.T for a, _ in factors])
    b = np.zeros((sum(b.shape[1] for _, b in factors), a.shape[0]), a.dtype)
    row = column = 0
    for _, part in factors:
        rank, rows = part.shape
        b[row : row + rows, column : column + rank] = part.T
        row, column = row + rows, column + rank
    return np.ascontiguousarray(a), b


def _config(lora: Lora, ranks: dict[str, int], base: str) -> dict[str, Any]:
    rank = min(ranks.values())
    leaves = {module.rsplit(".", 1)[1]: size for module, size in ranks.items()}
    wider = {leaf: size for leaf, size in leaves.items() if size != rank}
    # LLaDA names its head like a projection of its layers, so there only a pattern tells them apart
    pattern = "|".join(re.escape(module).replace(r"\{\}", r"\d+") for module in sorted(ranks))
    ambiguous = any(".blocks." in module for module in ranks)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": f"({pattern})" if ambiguous else sorted(leaves),
        "r": rank,
        "lora_alpha": lora.scale * rank,
        "rank_pattern": wider,
        "alpha_pattern": {leaf: lora.scale * size for leaf, size in wider.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def is_adapter(folder: pathlib.Path) -> bool:
    """Return whether a folder is a PEFT adapter."""
    return (folder / CONFIG).exists()


def base(folder: pathlib.Path) -> str:
    """Return the folder or hub id of the model that an adapter was trained on; ValueError where its config does not say."""
    found = _read_config(folder).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise ValueError(f"{folder / CONFIG} has no base_model_name_or_path; allowed: a folder or hub id")
    return found


def load_adapter(folder: pathlib.Path, config: ModelConfig) -> Lora:
    """Read a PEFT adapter's factors (float32) for a base model of this config; what each is scaled by is multiplied into B.

    Layers and modules that the adapter leaves alone get zeros, or no factors. Raises ValueError for an adapter that is more than LoRA on
    linear layers, for tensors that the base has no place for, and for shapes that do not fit it.
    """
    fields = _read_config(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} has no {WEIGHTS}; other formats are not read, since they can run code")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype.kind in "fV" and not finite(tensor):
            raise ValueError(f"{folder / WEIGHTS}: tensor {key!r} holds NaN or infinity; allowed: finite numbers")
    names, factors = families.family(config.model_type).names(config), {}
    shared = [part.name for part in names.values()]
    for path in LINEAR:
        part = names[f"layers/{path}"]
        keys = ["base_model.model." + part.name.format(layer).removesuffix(".weight") for layer in range(config.layers)]
        found = {}
        for layer, key in enumerate(keys):
            a, b = (tensors.get(f"{key}.lora_{name}.weight") for name in "AB")
            if a is not None and b is not None:
                if a.ndim != 2 or b.ndim != 2:
                    raise ValueError(f"{folder / WEIGHTS}: the factors of {key!r} are {a.shape}, {b.shape}; allowed: two matrices")
                found[layer] = (a.astype(np.float32).T, _scale(fields, key, a.shape[0]) * b.astype(np.float32).T)
                del tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
        if found and shared.count(part.name) > 1:
            raise ValueError(f"{folder}: an adapter on the fused {part.name!r} of a {config.model_type!r} model is not read")
        if found:
            factors[path] = _stacked(folder, path, found, config)
    if tensors or not factors:
        raise ValueError(f"{folder / WEIGHTS}: no place in the base model for {', '.join(sorted(tensors)[:3]) or 'an empty adapter'}")
    return Lora(factors=jax.tree.map(jnp.asarray, factors), scale=1.0)


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    """An adapter's config; ValueError for a kind that is not plain LoRA."""
    fields = read_json(str(folder / CONFIG))
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} has no peft_type LORA; other adapters are not read")
    for key, allowed in PLAIN.items():
        if fields.get(key) not in allowed:
            raise ValueError(f"{folder / CONFIG}: {key} is {fields[key]!r}; allowed: {allowed[1]!r}")
    alphas = fields.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise ValueError(f"{folder / CONFIG}: alpha_pattern is {alphas!r:.80}; allowed: an object of patterns and numbers")
    for key, alpha in {"lora_alpha": fields.get("lora_alpha"), **alphas}.items():
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise ValueError(f"{folder / CONFIG}: {key} is {alpha!r}; allowed: a number")
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{folder / CONFIG}: alpha_pattern has {key!r}: {error}; allowed: a regular expression") from error
    return fields


def _scale(fields: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's product by: alpha / rank, or alpha / sqrt(rank); some modules have an alpha of their own."""
    own = [alpha for pattern, alpha in (fields.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = own[0] if own else fields["lora_alpha"]
    return float(alpha) / (math.sqrt(rank) if fields.get("use_rslora") else rank)


def _stacked(folder: pathlib.Path, path: str, found: dict[int, tuple[Array, Array]], config: ModelConfig) -> dict[str, Array]:
    """The factors of all layers in one array each, zeros where a layer has none or less rank than another."""
    rank = max(a.shape[1] for a, _ in found.values())
    _, rows, columns = weights.table(config)["layers"][path].shape
    a_LxDxr = np.zeros((config.layers, rows, rank), np.float32)
    b_LxrxO = np.zeros((config.layers, rank, columns), np.float32)
    for layer, (a, b) in found.items():
        if a.shape != (rows, a.shape[1]) or b.shape != (a.shape[1], columns):
            raise ValueError(f"{folder}: {path} of layer {layer} has factors {a.shape}, {b.shape}; the base has {rows} x {columns}")
        a_LxDxr[layer, :, : a.shape[1]], b_LxrxO[layer, : a.shape[1]] = a, b
    return {"a": a_LxDxr, "b": b_LxrxO}
