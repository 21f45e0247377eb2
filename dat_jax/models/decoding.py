"""Batched generation with a key/value cache: greedy, temperature and nucleus sampling, from tokens or perturbed embeddings.

The prompt's residual stream may be perturbed at any site, as in `transformer.hidden`; the streams of the new tokens are their own, and
feel it through the keys and values of the prompt.

Rows are aligned to the right before the first pass, so that slots count positions whichever side the padding was on, and the loop
ends when every row has stopped. The cache is the loop's carry, which XLA updates in place.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dat_jax import sharding
from dat_jax.models import transformer
from dat_jax.models.attention import attend, attend_xla
from dat_jax.models.config import ModelConfig
from dat_jax.models.transformer import Delta

Params = dict[str, Any]
Cache = tuple[jax.Array, jax.Array]  # keys and values, LxBxSxNxK


@flax.struct.dataclass
class PerRow:
    """What each row asks for by itself, in place of the call's temperature, top_p and max_new_tokens; arrays, so no value compiles anew."""

    temperature_B: jax.Array  # 0: greedy
    top_p_B: jax.Array
    limit_B: jax.Array  # tokens after which the row ends, from 1 to max_new_tokens


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "stop_tokens", "temperature", "top_p", "pad_token"))
def generate(
    params: Params,
    config: ModelConfig,
    e_BxPxD: jax.Array,
    valid_BxP: jax.Array,
    keys_B: jax.Array,
    add: Delta | None = None,
    per_row: PerRow | None = None,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    pad_token: int = 0,
) -> jax.Array:
    """Continue prompts given as embedding rows by up to max_new_tokens and return the new token ids, BxN.

    Prompts may be padded on the left or on the right; each row needs one valid position. A row ends with its first stop token,
    after which only pad_token follows. temperature 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature)
    restricted to the smallest set of likeliest tokens whose probability reaches top_p, each row by its own key of keys_B.
    add: perturbations BxPxD of the whole prompt block by site. Raises ValueError for a site that is not there.
    per_row: what replaces temperature and top_p in each row, and ends it earlier.
    """
    if not config.causal:
        raise ValueError(f"{config.model_type} is not a causal model; sample it with dat_jax.diffusion")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; allowed: 1 or more")
    B, P, _ = e_BxPxD.shape
    N = max_new_tokens
    add = {site: align_right(delta_BxPxD, valid_BxP)[0] for site, delta_BxPxD in (add or {}).items()}
    e_BxPxD, valid_BxP = align_right(e_BxPxD, valid_BxP)
    stream_dtype = jnp.float32 if 0 in add else e_BxPxD.dtype
    lengths_B = valid_BxP.sum(axis=1)
    valid_BxS = jnp.concatenate([valid_BxP, jnp.ones((B, N), bool)], axis=1)
    if per_row is None:
        choose = functools.partial(_choose, params, config, keys_B, temperature, top_p)
        limit_B = jnp.full((B,), N)
    else:
        choose = functools.partial(_choose_per_row, params, config, keys_B, per_row)
        limit_B = per_row.limit_B
    h_BxD, cache = prefill(params, config, e_BxPxD, valid_BxP, N, add)
    token_B = choose(h_BxD, 0)
    tokens_BxN = jnp.full((B, N), pad_token, token_B.dtype).at[:, 0].set(token_B)
    done_B = _is_stop(token_B, stop_tokens) | (limit_B <= 1)

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        n, _, done_B, *_ = state
        return (n < N) & ~jnp.all(done_B)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        n, token_B, done_B, tokens_BxN, cache = state
        e_Bx1xD = transformer.embed(params, config, token_B[:, None]).astype(stream_dtype)
        h_BxD, cache = step(params, config, e_Bx1xD, lengths_B + n - 1, valid_BxS, P + n - 1, cache)
        token_B = jnp.where(done_B, pad_token, choose(h_BxD, n))
        tokens_BxN = jax.lax.dynamic_update_slice(tokens_BxN, token_B[:, None], (0, n))
        return n + 1, token_B, done_B | _is_stop(token_B, stop_tokens) | (n + 1 >= limit_B), tokens_BxN, cache

    state = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), token_B, done_B, tokens_BxN, cache))
    return state[3]


def align_right(x_BxPxD: jax.Array, valid_BxP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Roll each row until its last valid position is the last one, so that padding stands on the left."""
    P = valid_BxP.shape[1]
    trailing_B = jnp.argmax(valid_BxP[:, ::-1], axis=1)
    source_BxP = (jnp.arange(P)[None] - trailing_B[:, None]) % P
    return jnp.take_along_axis(x_BxPxD, source_BxP[..., None], axis=1), jnp.take_along_axis(valid_BxP, source_BxP, axis=1)


def prefill(
    params: Params, config: ModelConfig, e_BxPxD: jax.Array, valid_BxP: jax.Array, room: int, add: Delta | None = None
) -> tuple[jax.Array, Cache]:
    """Run the prompt; return the last position's hidden state BxD and a cache with room for as many more tokens.

    add: perturbations BxPxD by site, as in `transformer.hidden`; the cached keys and values are those of the perturbed stream.
    Raises ValueError for a site that is not there.
    """
    add = {} if add is None else add
    transformer.check_sites(config, add)
    P = valid_BxP.shape[1]
    rotations = transformer.rotation_tables(config, transformer.positions(valid_BxP), P + room)

    def body(h_BxPxD: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, Cache]:
        weights, factors, local = layer
        q, k, v = transformer.project_qkv(weights, factors, config, h_BxPxD, transformer.select(local, rotations), 0.0)
        values = attend(q, k, v, valid_BxP, config, local)
        pad = ((0, 0), (0, room), (0, 0), (0, 0))
        return transformer.finish_layer(weights, factors, config, h_BxPxD, values, 0.0), (jnp.pad(k, pad), jnp.pad(v, pad))

    h_BxPxD, caches = transformer.first_stream(config, e_BxPxD, add), []
    for site, layers in transformer.segments(transformer.stacked(params, config, None), config.layers, set(add)):
        if site > 0 and site in add:
            h_BxPxD = transformer.add_to_prompt(h_BxPxD, add[site])
        h_BxPxD, cache = jax.lax.scan(body, h_BxPxD, layers)
        caches.append(cache)
    k_cache, v_cache = (sharding.constrain(jnp.concatenate(parts), "layers", "batch", None, "kv_heads", None) for parts in zip(*caches))
    return transformer.norm(h_BxPxD[:, -1], params["final_norm"], config), (k_cache, v_cache)


def step(
    params: Params,
    config: ModelConfig,
    e_Bx1xD: jax.Array,
    positions_B: jax.Array,
    valid_BxS: jax.Array,
    slot: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Run one token per row, which takes the given cache slot; return its hidden state BxD and the extended cache."""
    rotations = transformer.rotation_tables(config, positions_B[:, None], valid_BxS.shape[1])

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        h_Bx1xD, k_cache, v_cache = carry
        index, (weights, factors, local) = layer
        q, k, v = transformer.project_qkv(weights, factors, config, h_Bx1xD, transformer.select(local, rotations), 0.0)
        k_cache = jax.lax.dynamic_update_slice(k_cache, k[None], (index, 0, slot, 0, 0))
        v_cache = jax.lax.dynamic_update_slice(v_cache, v[None], (index, 0, slot, 0, 0))
        k_BxSxNxK = jax.lax.dynamic_index_in_dim(k_cache, index, keepdims=False)
        v_BxSxNxK = jax.lax.dynamic_index_in_dim(v_cache, index, keepdims=False)
        values = attend_xla(q, k_BxSxNxK, v_BxSxNxK, valid_BxS, config, local, slot)
        return (transformer.finish_layer(weights, factors, config, h_Bx1xD, values, 0.0), k_cache, v_cache), None

    layers = (jnp.arange(config.layers), transformer.stacked(params, config, None))
    (h_Bx1xD, *extended), _ = jax.lax.scan(body, (transformer.scale_embeddings(config, e_Bx1xD), *cache), layers)
    return transformer.norm(h_Bx1xD[:, 0], params["final_norm"], config), (extended[0], extended[1])


def nucleus(logits_BxV: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """Set logits outside the smallest set of likeliest tokens whose probability reaches top_p (a number, or one per row, Bx1) to -inf."""
    ordered_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
    shares_BxV = jax.nn.softmax(ordered_BxV, axis=-1)
    before_BxV = jnp.cumsum(shares_BxV, axis=-1) - shares_BxV
    smallest_Bx1 = jnp.min(jnp.where(before_BxV < top_p, ordered_BxV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BxV >= smallest_Bx1, logits_BxV, -jnp.inf)


def _choose(
    params: Params, config: ModelConfig, keys_B: jax.Array, temperature: float, top_p: float, h_BxD: jax.Array, n: jax.Array | int
) -> jax.Array:
    logits_BxV = transformer.head(params, config, h_BxD)
    if temperature == 0.0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = logits_BxV / temperature
    if top_p < 1.0:
        logits_BxV = nucleus(logits_BxV, top_p)
    return _drawn(logits_BxV, keys_B, n)


def _choose_per_row(
    params: Params, config: ModelConfig, keys_B: jax.Array, per_row: PerRow, h_BxD: jax.Array, n: jax.Array | int
) -> jax.Array:
    logits_BxV = transformer.head(params, config, h_BxD)
    temperature_Bx1, top_p_Bx1 = per_row.temperature_B[:, None], per_row.top_p_B[:, None]

    def drawn(logits_BxV: jax.Array) -> jax.Array:
        scaled_BxV = logits_BxV / jnp.where(temperature_Bx1 > 0, temperature_Bx1, 1.0)
        cut = jnp.any(top_p_Bx1 < 1.0)  # sorting a vocabulary is slow
        scaled_BxV = jax.lax.cond(cut, lambda x_BxV: jnp.where(top_p_Bx1 < 1.0, nucleus(x_BxV, top_p_Bx1), x_BxV), lambda x: x, scaled_BxV)
        return _drawn(scaled_BxV, keys_B, n)

    greedy_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    drawn_B = jax.lax.cond(jnp.any(temperature_Bx1 > 0), drawn, lambda _: greedy_B, logits_BxV)
    return jnp.where(per_row.temperature_B > 0, drawn_B, greedy_B)


def _drawn(logits_BxV: jax.Array, keys_B: jax.Array, n: jax.Array | int) -> jax.Array:
    """Token n of each row, drawn from softmax(logits) by the row's key."""

    # mode="high": plain float32 noise ends at 16, which would cut off the tail of a large vocabulary
    def noise(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, n), logits_BxV.shape[1:], jnp.float32, mode="high")

    return jnp.argmax(logits_BxV + jax.vmap(noise)(keys_B), axis=-1).astype(jnp.int32)


def _is_stop(token_B: jax.Array, stop_tokens: tuple[int, ...]) -> jax.Array:
    stops = jnp.asarray(stop_tokens, jnp.int32).reshape(1, -1)
    return jnp.any(token_B[:, None] == stops, axis=1)
