"""The one transformer behind every family: embeddings in, hidden states out, and the head only where a loss needs it.

Legend: B batch, T positions, R response positions, D width, H query heads, N key/value heads, K head dim, V vocabulary, L layers.
Sites: 0 is the embeddings, k the residual stream before layer k; perturbations are added and hidden states read there.
Notable choices: the layers are stacked and run under `lax.scan` with rematerialization, one scan from site to site that is used;
padding may stand on either side; norms, rotations, scores and logits are float32 whatever the weights are.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from numpy.typing import NDArray

from dat_jax import sharding
from dat_jax.models.attention import attend
from dat_jax.models.config import ModelConfig, RopeScaling
from dat_jax.models.lora import Lora
from dat_jax.models.quantized import product

Params = dict[str, Any]
Rotation = tuple[jax.Array, jax.Array]
Delta = dict[int, jax.Array]  # site -> BxPxD; site 0 is the embeddings, site k the residual stream before layer k (0 <= k < layers)


def embed(params: Params, config: ModelConfig, tokens_BxT: jax.Array) -> jax.Array:
    """Return the embedding matrix's rows e_BxTxD for token ids, unscaled: the space in which perturbations live."""
    del config
    return params["embedding"][tokens_BxT]


@overload
def hidden(  # type: ignore[overload-overlap]  # an empty tuple is a tuple of integers too
    params: Params, config: ModelConfig, e_BxTxD: jax.Array, valid_BxT: jax.Array, lora: Lora | None = None, add: Delta | None = None,
    taps: tuple[()] = (), open_TxT: jax.Array | None = None,
) -> jax.Array: ...  # fmt: skip
@overload
def hidden(
    params: Params, config: ModelConfig, e_BxTxD: jax.Array, valid_BxT: jax.Array, lora: Lora | None = None, add: Delta | None = None,
    *, taps: tuple[int, ...], open_TxT: jax.Array | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]: ...  # fmt: skip
def hidden(
    params: Params, config: ModelConfig, e_BxTxD: jax.Array, valid_BxT: jax.Array, lora: Lora | None = None, add: Delta | None = None,
    taps: tuple[int, ...] = (), open_TxT: jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, dict[int, jax.Array]]:  # fmt: skip
    """Run all layers on embeddings and return hidden states h_BxTxD after the final norm, in the dtype of the residual stream.

    valid_BxT is False at padding, which is never attended to; a row's positions count its valid tokens from 0.
    add: perturbations of the first P positions. Site 0's is added to the embeddings, unscaled, in float32, which the residual stream
    then is; site k's to the stream before layer k, in its dtype: that of the embeddings, unless site 0 is perturbed too.
    taps: static sites; with any, (h_BxTxD, {site: h_BxTxD}) is returned: the stream before layer k, perturbation included, and at
    site `layers` after the last layer, before the final norm. open_TxT: the keys that each query may see at most (see `attend`).
    Raises ValueError for a site that is not there.
    """
    add = {} if add is None else add
    check_sites(config, add, taps)
    h_BxTxD = sharding.constrain(first_stream(config, e_BxTxD, add), "batch", "positions", None)
    rotations = rotation_tables(config, positions(valid_BxT), valid_BxT.shape[1])

    def body(h_BxTxD: jax.Array, layer: tuple[Params, Params, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        weights, factors, local = layer
        q, k, v = project_qkv(weights, factors, config, h_BxTxD, select(local, rotations), scale)
        values = attend(q, k, v, valid_BxT, config, local, open_TxS=open_TxT)
        return finish_layer(weights, factors, config, h_BxTxD, values, scale), h_BxTxD if every else None

    # A scan per tap would compile the layer as often as there are taps. Where all are asked for, one scan gives them all.
    every = len(set(taps)) > config.layers
    scale = 0.0 if lora is None else lora.scale
    if config.remat:
        policy = jax.checkpoint_policies.save_only_these_names("product") if config.keep_products else None
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    streams = {}
    for site, layers in segments(stacked(params, config, lora), config.layers, {*add, *(() if every else taps)}):
        if site > 0 and site in add:
            h_BxTxD = add_to_prompt(h_BxTxD, add[site])
        streams[site] = h_BxTxD
        h_BxTxD, before_LxBxTxD = jax.lax.scan(body, h_BxTxD, layers)
        streams |= {} if before_LxBxTxD is None else {site + place: before for place, before in enumerate(before_LxBxTxD)}
    streams[config.layers] = h_BxTxD
    h_BxTxD = norm(h_BxTxD, params["final_norm"], config).astype(h_BxTxD.dtype)
    return (h_BxTxD, {site: streams[site] for site in taps}) if taps else h_BxTxD


def head(params: Params, config: ModelConfig, h: jax.Array) -> jax.Array:
    """Map hidden states (..., D) to float32 logits (..., V)."""
    dtype = jnp.dtype(config.compute_dtype)
    if config.tied_head:
        logits = jnp.einsum("...d,vd->...v", h.astype(dtype), params["embedding"].astype(dtype), preferred_element_type=jnp.float32)
    else:
        logits = jnp.einsum("...d,dv->...v", h.astype(dtype), params["head"].astype(dtype), preferred_element_type=jnp.float32)
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def logits(params: Params, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, lora: Lora | None = None) -> jax.Array:
    """Return float32 logits BxTxV of token ids; rows at padding positions are finite and without meaning."""
    return head(params, config, hidden(params, config, embed(params, config, tokens_BxT), valid_BxT, lora))


def log_probs(params: Params, config: ModelConfig, h_BxRxD: jax.Array, targets_BxR: jax.Array, chunk: int = 0) -> jax.Array:
    """Return the float32 log-probability BxR (nats) of each target under the head at the hidden state of the same index.

    With chunk > 0 the head sees that many positions of every row at a time, forward and backward, so the vocabulary never meets
    all positions at once. The caller aligns: a causal model's token i is predicted by the hidden state at i - 1.
    """

    def score(h_BxCxD: jax.Array, targets_BxC: jax.Array) -> jax.Array:
        logits_BxCxV = head(params, config, h_BxCxD)
        # A masked sum instead of a gather: its gradient is no scatter, and a sharded vocabulary needs no communication but the sum.
        chosen_BxCxV = jax.lax.broadcasted_iota(jnp.int32, logits_BxCxV.shape, 2) == targets_BxC[..., None]
        chosen_BxC = jnp.sum(jnp.where(chosen_BxCxV, logits_BxCxV, 0.0), axis=-1)
        return chosen_BxC - jax.nn.logsumexp(logits_BxCxV, axis=-1)

    return by_chunks(score, (gathered(config, h_BxRxD), targets_BxR), chunk)


def divergence(
    params: Params, config: ModelConfig, h_BxRxD: jax.Array, original: Params, original_h_BxRxD: jax.Array, chunk: int = 0
) -> jax.Array:
    """Return KL(original || model), float32 BxR in nats, of the next token's distribution at hidden states of the same position.

    Chunked as `log_probs` is; both heads' logits of a chunk are held at a time.
    """

    def score(h_BxCxD: jax.Array, original_h_BxCxD: jax.Array) -> jax.Array:
        logp_BxCxV = jax.nn.log_softmax(head(params, config, h_BxCxD), axis=-1)
        wanted_BxCxV = jax.lax.stop_gradient(jax.nn.log_softmax(head(original, config, original_h_BxCxD), axis=-1))
        return jnp.sum(jnp.exp(wanted_BxCxV) * (wanted_BxCxV - logp_BxCxV), axis=-1)

    return by_chunks(score, (gathered(config, h_BxRxD), gathered(config, original_h_BxRxD)), chunk)


def gathered(config: ModelConfig, h_BxRxD: jax.Array) -> jax.Array:
    """Return hidden states as the head reads them, gathered over the mesh once and not per chunk."""
    return sharding.constrain(h_BxRxD.astype(config.compute_dtype), "batch", None, None)


def by_chunks(score: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], chunk: int) -> jax.Array:
    """Return score(*arrays), BxR, of arrays BxR or BxRxD, with `chunk` positions at a time, forward and backward; 0: all at once."""
    R = arrays[0].shape[1]
    if chunk <= 0 or chunk >= R:
        return score(*arrays)
    chunks = math.ceil(R / chunk)

    def cut(x_BxR: jax.Array) -> jax.Array:
        x_BxR = jnp.pad(x_BxR, ((0, 0), (0, chunks * chunk - R), *((0, 0),) * (x_BxR.ndim - 2)))
        return x_BxR.reshape(x_BxR.shape[0], chunks, chunk, *x_BxR.shape[2:]).swapaxes(0, 1)

    scores_CxBxc = jax.lax.map(lambda parts: jax.checkpoint(score, prevent_cse=False)(*parts), tuple(map(cut, arrays)))
    return scores_CxBxc.swapaxes(0, 1).reshape(-1, chunks * chunk)[:, :R]


# Sites: where the residual stream is perturbed or read.


def check_sites(config: ModelConfig, add: Iterable[int], taps: Iterable[int] = (), key: str = "add") -> None:
    """Raise ValueError naming the site of a perturbation or tap that the model does not have; `key` names the perturbation's."""
    for name, sites, last in ((key, add, config.layers - 1), ("taps", taps, config.layers)):
        for site in sites:
            if site not in range(last + 1):
                raise ValueError(f"{name} names site {site!r}; allowed for a model of {config.layers} layers: 0 to {last}")


def first_stream(config: ModelConfig, e_BxTxD: jax.Array, add: Delta) -> jax.Array:
    """Return the residual stream before layer 0: the embeddings, perturbed in float32 where site 0 is in `add`, and then scaled."""
    if 0 in add:
        e_BxTxD = add_to_prompt(e_BxTxD.astype(jnp.float32), add[0])
    return scale_embeddings(config, e_BxTxD)


def add_to_prompt(x_BxTxD: jax.Array, delta_BxPxD: jax.Array) -> jax.Array:
    """Return x with the perturbation added to its first P positions, in the dtype of x."""
    P = delta_BxPxD.shape[1]
    return jnp.concatenate([x_BxTxD[:, :P] + delta_BxPxD.astype(x_BxTxD.dtype), x_BxTxD[:, P:]], axis=1)


def segments(layers: Any, count: int, sites: set[int]) -> list[tuple[int, Any]]:
    """Return (first layer, slice of the stacked `layers`) of each scan from site to site."""
    bounds = [0, *sorted(site for site in sites if 0 < site < count), count]
    slices = [slice(*pair) for pair in itertools.pairwise(bounds)]
    return [(part.start, jax.tree.map(operator.itemgetter(part), layers)) for part in slices]


# The pieces of a layer, shared with the cached decoder.


def stacked(params: Params, config: ModelConfig, lora: Lora | None) -> tuple[Params, Params, jax.Array]:
    """Return what a scan over layers reads: weights, adapter factors (maybe none) and whether the layer is local."""
    local_L = jnp.asarray(config.local_layers or (False,) * config.layers)
    return params["layers"], ({} if lora is None else lora.factors), local_L


def scale_embeddings(config: ModelConfig, e_BxTxD: jax.Array) -> jax.Array:
    """Apply Gemma's factor sqrt(D), rounded to the embeddings' dtype as the published models do."""
    if config.embedding_scale is None:
        return e_BxTxD
    return e_BxTxD * jnp.asarray(config.embedding_scale, e_BxTxD.dtype)


def project_qkv(
    weights: Params, factors: Params, config: ModelConfig, h_BxTxD: jax.Array, rotation: Rotation, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return rotated queries BxTxHxK, rotated keys BxTxNxK and values BxTxNxK of a layer."""
    B, T, _ = h_BxTxD.shape
    x_BxTxD = norm(h_BxTxD, weights["attention_norm"], config)

    def project(name: str, count: int) -> jax.Array:
        y = linear(x_BxTxD, weights, factors, name, scale)
        if config.qkv_bias:
            y = y + weights[f"{name}_bias"].astype(y.dtype)[None, None]
        return y.reshape(B, T, count, config.head_dim)

    q, k, v = project("q", config.heads), project("k", config.kv_heads), project("v", config.kv_heads)
    if config.qk_norm:
        q, k = norm(q, weights["q_norm"], config), norm(k, weights["k_norm"], config)
    return rotate(q, rotation), rotate(k, rotation), v


def finish_layer(
    weights: Params, factors: Params, config: ModelConfig, h_BxTxD: jax.Array, values_BxTxHxK: jax.Array, scale: float
) -> jax.Array:
    """Add the attention's output and then the gated MLP to the residual stream."""
    B, T, _ = h_BxTxD.shape
    y_BxTxD = linear(values_BxTxHxK.reshape(B, T, -1), weights, factors, "o", scale)
    if config.post_norms:
        y_BxTxD = norm(y_BxTxD, weights["post_attention_norm"], config)
    h_BxTxD = sharding.constrain(h_BxTxD + y_BxTxD.astype(h_BxTxD.dtype), "batch", "positions", None)
    x_BxTxD = norm(h_BxTxD, weights["mlp_norm"], config)
    gate_BxTxF = activate(linear(x_BxTxD, weights, factors, "gate", scale), config)
    y_BxTxD = linear(gate_BxTxF * linear(x_BxTxD, weights, factors, "up", scale), weights, factors, "down", scale)
    if config.post_norms:
        y_BxTxD = norm(y_BxTxD, weights["post_mlp_norm"], config)
    return sharding.constrain(h_BxTxD + y_BxTxD.astype(h_BxTxD.dtype), "batch", "positions", None)


def linear(x: jax.Array, weights: Params, factors: Params, name: str, scale: float) -> jax.Array:
    """Return x W, plus scale * (x A) B where the layer has an adapter, in the dtype of x."""
    rows = sharding.rows_of_tokens(x)
    y = product(rows, weights[name])
    if name in factors:
        y = y + (scale * (rows @ factors[name]["a"].astype(x.dtype))) @ factors[name]["b"].astype(x.dtype)
    return checkpoint_name(y, "product").reshape(*x.shape[:-1], -1)


def norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Root-mean-square normalization in float32, returned in the compute dtype."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.norm_epsilon)
    weight = weight.astype(jnp.float32) + (1.0 if config.norm_plus_one else 0.0)
    return (x * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))).astype(config.compute_dtype)


def activate(x: jax.Array, config: ModelConfig) -> jax.Array:
    """Apply the gate's nonlinearity."""
    if config.activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=config.activation == "gelu_tanh")


def positions(valid_BxT: jax.Array) -> jax.Array:
    """Return each token's index among the valid tokens of its row; padding in front has 0."""
    return jnp.maximum(jnp.cumsum(valid_BxT.astype(jnp.int32), axis=1) - 1, 0)


def rotation_tables(config: ModelConfig, positions_BxT: jax.Array, length: int) -> tuple[Rotation, Rotation]:
    """Return float32 (cos, sin), each BxTx(K/2), of the global and of the local layers for sequences of up to `length`."""
    every = _rotation(config, positions_BxT, config.rope_theta, config.rope_scaling, length)
    if config.rope_local_theta is None:
        return every, every
    return every, _rotation(config, positions_BxT, config.rope_local_theta, None, length)


def select(local: jax.Array, rotations: tuple[Rotation, Rotation]) -> Rotation:
    """Choose the local or the global rotation of a layer."""
    every, near = rotations
    if every is near:
        return every
    return jnp.where(local, near[0], every[0]), jnp.where(local, near[1], every[1])


def rotate(x_BxTxHxK: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotate the pairs (j, j + K/2) of each head in float32 (half-split rotary embedding)."""
    cos_BxTx1xk, sin_BxTx1xk = rotation[0][:, :, None], rotation[1][:, :, None]
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos_BxTx1xk - second * sin_BxTx1xk, second * cos_BxTx1xk + first * sin_BxTx1xk)
    return jnp.concatenate(rotated, axis=-1).astype(x_BxTxHxK.dtype)


def _rotation(config: ModelConfig, positions_BxT: jax.Array, theta: float, scaling: RopeScaling | None, length: int) -> Rotation:
    frequencies_k, factor = rotary_frequencies(config.head_dim, theta, scaling, length)
    angles_BxTxk = positions_BxT[..., None].astype(jnp.float32) * frequencies_k[None, None]
    return jnp.cos(angles_BxTxk) * factor, jnp.sin(angles_BxTxk) * factor


@functools.cache
def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, length: int) -> tuple[NDArray[np.float32], float]:
    """Return the head_dim / 2 angular frequencies per position (float32) and the factor on cos and sin, as transformers computes them."""
    frequencies: NDArray[Any] = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    factor = 1.0
    if scaling is None:
        pass
    elif scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "llama3":
        # Wavelengths within the original context stay, far longer ones are stretched, and those between are blended.
        turns = scaling.original_length * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    elif scaling.kind == "longrope":
        factors = scaling.long_factors if length > scaling.original_length else scaling.short_factors
        frequencies, factor = frequencies / np.asarray(factors, np.float32), scaling.attention_factor
    else:
        raise ValueError(f"rope scaling {scaling.kind!r}; allowed: 'linear', 'llama3', 'longrope'")
    return frequencies.astype(np.float32), factor
