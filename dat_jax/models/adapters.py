"""LoRA factors as a PEFT adapter folder, which transformers, vLLM and PEFT put on top of the base model."""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from dat_jax.data import manifest
from dat_jax.models import families, remote
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import MANIFEST
from dat_jax.models.lora import Lora
from dat_jax.models.tensors import to_host

Array = np.ndarray[Any, Any]


def save_adapter(lora: Lora, config: ModelConfig, folder: str, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors (float32) for a base model given by folder or hub id.

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
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        (target / "adapter_model.safetensors").chmod(0o644)
        (target / "adapter_config.json").write_text(json.dumps(_config(lora, ranks, base), indent=2) + "\n")
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
