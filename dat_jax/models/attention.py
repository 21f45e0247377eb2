"""Scaled dot-product attention with grouped heads, padding, causal and sliding-window masks, and soft-capped scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dat_jax.models import splash
from dat_jax.models.config import ModelConfig


def attend(
    q_BxTxHxK: jax.Array,
    k_BxSxNxK: jax.Array,
    v_BxSxNxK: jax.Array,
    valid_BxS: jax.Array,
    config: ModelConfig,
    local: jax.Array | bool = False,
    first: jax.Array | int = 0,
    open_TxS: jax.Array | None = None,
) -> jax.Array:
    """Attend from T queries in slots first..first+T-1 to S keys in slots 0..S-1 and return the values' means, BxTxHxK.

    A key is seen when it is valid, not after the query (causal models) and, in a local layer, inside the sliding window.
    Windows are counted in slots, which are positions as long as the valid ones of a row are contiguous.
    open_TxS hides more: a key is seen only where it is True.
    With config.attention = "splash" whole sequences go through the TPU kernel; decoding against a cache, sequences whose length is no
    multiple of the kernel's blocks, and a mask of the caller's stay with the plain form.
    """
    length = q_BxTxHxK.shape[1]
    whole = length == k_BxSxNxK.shape[1] and length % splash.BLOCK == 0 and open_TxS is None
    if config.attention == "splash" and whole:
        return splash.attend(q_BxTxHxK, k_BxSxNxK, v_BxSxNxK, valid_BxS, config, local)
    if config.attention in ("xla", "splash"):
        return attend_xla(q_BxTxHxK, k_BxSxNxK, v_BxSxNxK, valid_BxS, config, local, first, open_TxS)
    raise ValueError(f"config.attention={config.attention!r}; allowed: 'xla', 'splash'")


def visible(
    valid_BxS: jax.Array, queries: int, config: ModelConfig, local: jax.Array | bool = False, first: jax.Array | int = 0
) -> jax.Array:
    """Return the boolean mask Bx1xTxS of the keys that each query may see."""
    keys = valid_BxS.shape[1]
    ahead_TxS = jnp.arange(keys)[None, :] - (first + jnp.arange(queries))[:, None]  # how far the key lies after the query
    seen_TxS = ahead_TxS <= 0 if config.causal else jnp.full((queries, keys), True)
    if config.sliding_window is not None:
        near_TxS = jnp.abs(ahead_TxS) < config.sliding_window
        seen_TxS = seen_TxS & (near_TxS | jnp.logical_not(local))
    return seen_TxS[None, None] & valid_BxS[:, None, None, :]


def partly_open(key: jax.Array, length: int, share: jax.Array) -> jax.Array:
    """Return a mask TxT for a bidirectional model: the past, itself, and a random share of the future, one draw for the whole batch.

    As DiffuLLaMA's training moves from the causal mask (share 0) to the full one (share 1), model/get_anneal_attn_mask.
    """
    past_TxT = jnp.tri(length, dtype=bool)
    return past_TxT | (jax.random.uniform(key, (length, length)) < share)


def attend_xla(
    q_BxTxHxK: jax.Array,
    k_BxSxNxK: jax.Array,
    v_BxSxNxK: jax.Array,
    valid_BxS: jax.Array,
    config: ModelConfig,
    local: jax.Array | bool = False,
    first: jax.Array | int = 0,
    open_TxS: jax.Array | None = None,
) -> jax.Array:
    """The reference form of `attend`: plain products with the scores in float32; a query that sees nothing gets finite values."""
    B, T, H, K = q_BxTxHxK.shape
    N = k_BxSxNxK.shape[2]
    scale = K**-0.5 if config.query_scale is None else config.query_scale
    q = (q_BxTxHxK * scale).reshape(B, T, N, H // N, K)
    scores = jnp.einsum("btngk,bsnk->bngts", q, k_BxSxNxK, preferred_element_type=jnp.float32)
    if config.attention_softcap is not None:
        scores = config.attention_softcap * jnp.tanh(scores / config.attention_softcap)
    seen = visible(valid_BxS, T, config, local, first)[:, :, None]
    if open_TxS is not None:
        seen = seen & open_TxS[None, None, None]
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(v_BxSxNxK.dtype)
    return jnp.einsum("bngts,bsnk->btngk", shares, v_BxSxNxK).reshape(B, T, H, K)
