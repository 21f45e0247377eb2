"""Low-rank adapters (Hu et al. 2021) on all linear layers, as the reference defenses train them: y = x W + scale * (x A) B."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.quantized import Quantized
from dat_jax.models.weights import Weight

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


@flax.struct.dataclass
class Lora:
    """Factors {"q": {"a": LxDxr, "b": LxrxO}, ...} of the linear layers, and the static factor alpha / rank on their product."""

    factors: dict[str, dict[str, jax.Array]]
    scale: float = flax.struct.field(pytree_node=False)


def table(config: ModelConfig, rank: int) -> dict[str, dict[str, Weight]]:
    """Return shapes and logical axes of the factors; a is drawn within +-1/sqrt(fan-in) and b is zero, as in PEFT."""
    layers = weights.table(config)["layers"]

    def pair(weight: Weight) -> dict[str, Weight]:
        L, rows, columns = weight.shape
        return {
            "a": Weight((L, rows, rank), ("layers", weight.axes[1], "rank"), 1 / math.sqrt(rows)),
            "b": Weight((L, rank, columns), ("layers", "rank", weight.axes[2]), 0.0, constant=True),
        }

    return {name: pair(layers[name]) for name in LINEAR}


def initialize(key: jax.Array, config: ModelConfig, rank: int, alpha: float) -> Lora:
    """Fresh float32 factors: a uniform (kaiming with a = sqrt(5), PEFT's choice), b zero, so the model is unchanged at first."""
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}; allowed: 1 or more")
    rows = table(config, rank)
    factors = {}
    for name, subkey in zip(LINEAR, jax.random.split(key, len(LINEAR)), strict=True):
        a, b = rows[name]["a"], rows[name]["b"]
        draw = jax.random.uniform(subkey, a.shape, jnp.float32, -a.init, a.init)
        factors[name] = {"a": draw, "b": jnp.zeros(b.shape, jnp.float32)}
    return Lora(factors=factors, scale=alpha / rank)


def merge(params: dict[str, Any], lora: Lora | None) -> dict[str, Any]:
    """Return parameters with W + scale * A B in place of each adapted W (dtype of W kept); None merges nothing.

    A quantized W keeps its codes, with the factors beside them in the same weight: no layer's full matrix is made here.
    """
    if lora is None:
        return params
    merged = {name: _updated(params["layers"][name], factor["a"], factor["b"], lora.scale) for name, factor in lora.factors.items()}
    return {**params, "layers": {**params["layers"], **merged}}


def _updated(weight: jax.Array | Quantized, a: jax.Array, b: jax.Array, scale: float) -> jax.Array | Quantized:
    return weight.updated(a, scale * b) if isinstance(weight, Quantized) else _added(weight, a, b, scale)


# Compiled, because one operation after the other would hold up to four copies of all layers' largest weight in float32 (8B: 28 GiB).
@functools.partial(jax.jit, static_argnames="scale")
def _added(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    update = jnp.einsum("ldr,lro->ldo", a, b, preferred_element_type=jnp.float32)
    return (weight.astype(jnp.float32) + scale * update).astype(weight.dtype)


def drop(key: jax.Array, lora: Lora, rate: float) -> Lora:
    """Dropout on the adapters' inputs: input features of each layer are left out with probability `rate`, the others grow.

    One draw serves all positions of a step (PEFT draws per position), which keeps the adapters mergeable.
    """
    if rate == 0.0:
        return lora
    factors = {}
    for name, subkey in zip(sorted(lora.factors), jax.random.split(key, len(lora.factors)), strict=True):
        a = lora.factors[name]["a"]
        kept = jax.random.bernoulli(subkey, 1 - rate, (*a.shape[:2], 1))
        factors[name] = {"a": jnp.where(kept, a / (1 - rate), 0), "b": lora.factors[name]["b"]}
    return lora.replace(factors=factors)  # type: ignore[attr-defined, no-any-return]
