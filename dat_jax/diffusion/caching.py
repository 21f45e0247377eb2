"""Keys and values of a row kept between denoising steps: an approximation that runs only a block of positions.

In a bidirectional model every key depends on every token, so cached keys are stale until the next full pass (Fast-dLLM, dual cache). For
p(prompt | response) the block is the prompt: the response's keys and values, whose own tokens never change, are kept.
B batch, T positions, M positions of the block, L layers, N key/value heads, K head dim, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dat_jax.models import transformer
from dat_jax.models.attention import attend
from dat_jax.models.config import ModelConfig

Params = Any


@struct.dataclass
class Cache:
    """Rotated keys and values of every layer."""

    k_LxBxTxNxK: jax.Array
    v_LxBxTxNxK: jax.Array


def full_pass(params: Params, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array) -> tuple[jax.Array, Cache]:
    """Final hidden states of all positions (B, T, D) and the keys and values behind them."""
    empty = jnp.zeros((config.layers, *tokens_BxT.shape, config.kv_heads, config.head_dim), jnp.dtype(config.compute_dtype))
    return block_pass(params, config, tokens_BxT, valid_BxT, Cache(k_LxBxTxNxK=empty, v_LxBxTxNxK=empty), 0, tokens_BxT.shape[1])


def block_pass(
    params: Params, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, cache: Cache, start: int, stop: int
) -> tuple[jax.Array, Cache]:
    """Final hidden states of positions [start, stop) (static), which see fresh keys of the block and cached ones of the rest.

    The returned cache holds the block's new keys and values.
    """
    h_BxMxD = transformer.scale_embeddings(config, transformer.embed(params, config, tokens_BxT[:, start:stop]))
    position_BxM = transformer.positions(valid_BxT)[:, start:stop]
    rotations = transformer.rotation_tables(config, position_BxM, tokens_BxT.shape[1])

    def layer(h_BxMxD: jax.Array, inputs: tuple[Any, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        (weights, factors, local), k_BxTxNxK, v_BxTxNxK = inputs
        q, k, v = transformer.project_qkv(weights, factors, config, h_BxMxD, transformer.select(local, rotations), 0.0)
        k_BxTxNxK = k_BxTxNxK.at[:, start:stop].set(k.astype(k_BxTxNxK.dtype))
        v_BxTxNxK = v_BxTxNxK.at[:, start:stop].set(v.astype(v_BxTxNxK.dtype))
        values = attend(q, k_BxTxNxK, v_BxTxNxK, valid_BxT, config, local, start)
        return transformer.finish_layer(weights, factors, config, h_BxMxD, values, 0.0), (k_BxTxNxK, v_BxTxNxK)

    inputs = (transformer.stacked(params, config, None), cache.k_LxBxTxNxK, cache.v_LxBxTxNxK)
    h_BxMxD, (k, v) = jax.lax.scan(layer, h_BxMxD, inputs)
    return transformer.norm(h_BxMxD, params["final_norm"], config).astype(h_BxMxD.dtype), Cache(k_LxBxTxNxK=k, v_LxBxTxNxK=v)
