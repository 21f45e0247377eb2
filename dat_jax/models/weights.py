"""The one table of a model's weights: shape, logical axes and initial scale of each; everything else derives from it.

Matrices are stored (in, out) and the layers are stacked in front, so that one `lax.scan` runs them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dat_jax import sharding
from dat_jax.models import quantized
from dat_jax.models.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One line of the table; init is the standard deviation of a normal draw, or the constant value when `constant`."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: float
    constant: bool = False

    @property
    def matrix(self) -> bool:
        """Whether it is a stack of the layers' matrices, which alone are quantized: not embedding, head, norms and biases."""
        return self.axes[0] == "layers" and len(self.shape) == 3


def table(config: ModelConfig) -> dict[str, Any]:
    """Return the nested dict of `Weight` that has the structure of the model's parameters."""
    L, D, F, V = config.layers, config.width, config.mlp_width, config.vocab_size
    HK, NK = config.heads * config.head_dim, config.kv_heads * config.head_dim
    unit = 0.0 if config.norm_plus_one else 1.0
    residual = 1 / math.sqrt(2 * L)

    def matrix(rows: int, columns: int, axes: tuple[str, str], scale: float = 1.0) -> Weight:
        return Weight((L, rows, columns), ("layers", *axes), scale / math.sqrt(rows))

    def norm(size: int) -> Weight:
        return Weight((L, size), ("layers", None), unit, constant=True)

    layers = {
        "attention_norm": norm(D),
        "q": matrix(D, HK, ("embed", "heads")),
        "k": matrix(D, NK, ("embed", "kv_heads")),
        "v": matrix(D, NK, ("embed", "kv_heads")),
        "o": matrix(HK, D, ("heads", "embed"), residual),
        "mlp_norm": norm(D),
        "gate": matrix(D, F, ("embed", "mlp")),
        "up": matrix(D, F, ("embed", "mlp")),
        "down": matrix(F, D, ("mlp", "embed"), residual),
    }
    if config.qkv_bias:
        layers["q_bias"] = Weight((L, HK), ("layers", "heads"), 0.0, constant=True)
        layers["k_bias"] = Weight((L, NK), ("layers", "kv_heads"), 0.0, constant=True)
        layers["v_bias"] = Weight((L, NK), ("layers", "kv_heads"), 0.0, constant=True)
    if config.qk_norm:
        layers |= {"q_norm": norm(config.head_dim), "k_norm": norm(config.head_dim)}
    if config.post_norms:
        layers |= {"post_attention_norm": norm(D), "post_mlp_norm": norm(D)}
    weights: dict[str, Any] = {
        "embedding": Weight((V, D), ("vocab", "embed"), 0.02 if config.tied_head else 1 / math.sqrt(D)),
        "layers": layers,
        "final_norm": Weight((D,), (None,), unit, constant=True),
    }
    if not config.tied_head:
        weights["head"] = Weight((D, V), ("embed", "vocab"), 1 / math.sqrt(D))
    return weights


def initialize(key: jax.Array, config: ModelConfig, dtype: str = "float32") -> Params:
    """Draw fresh parameters: normal with standard deviation 1/sqrt(fan-in), residual outputs smaller by sqrt(2 * layers)."""
    weights, structure = jax.tree.flatten(table(config))

    def draw(key: jax.Array, weight: Weight) -> jax.Array:
        if weight.constant:
            return jnp.full(weight.shape, weight.init, dtype)
        return (weight.init * jax.random.normal(key, weight.shape, jnp.float32)).astype(dtype)

    keys = jax.random.split(key, len(weights))
    return jax.tree.unflatten(structure, [draw(k, w) for k, w in zip(keys, weights, strict=True)])


def abstract(config: ModelConfig, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None) -> Params:
    """Return the parameters as shapes without values, with their shardings when a mesh is given.

    dtype: with one of `quantized.KINDS` the layers' matrices are so, and the rest is in the compute dtype.
    """
    rest = config.compute_dtype if dtype in quantized.KINDS else dtype

    def shape(weight: Weight) -> Any:
        if dtype in quantized.KINDS and weight.matrix:
            return quantized.abstract(dtype, weight.shape, weight.axes, mesh)
        placed = None if mesh is None else sharding.named_sharding(mesh, weight.axes, weight.shape)
        return jax.ShapeDtypeStruct(weight.shape, jnp.dtype(rest), sharding=placed)

    return jax.tree.map(shape, table(config))
