"""Monte-Carlo bound on the log-likelihood of some tokens of a row given the others, under a masked-diffusion LM.

Each draw masks l of a row's L target tokens and weighs their log-probabilities by L / l. The mean is an unbiased estimate of the chain-rule
log-probability averaged over all L! orders, which is a lower bound on log p. For log p(x | y) the targets are the prompt and y is given.
Reproduces LLaDA get_log_likelihood.py, for any target set and for many rows at once.
B rows, T positions, C target positions, S draws.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dat_jax.diffusion.denoiser import guided_logits, hidden_at, mask_id
from dat_jax.diffusion.proposal import first, ranks
from dat_jax.diffusion.sampler import COUNT, MASK_ORDER, position_keys, step_keys, uniforms
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig

Params = Any
SCHEMES = ("plain", "reference", "stratified", "antithetic")


def reference_counts(start_B: jax.Array, length_B: jax.Array, draws: int) -> jax.Array:
    """Masked counts (draws, B) from 1 to L, evenly spread from the integer `start` on and wrapped around (LLaDA forward_process).

    Its rounding of halves to even makes single counts up to twice as likely as they should be (L = 5, 4 draws: the third is never 2 or 5).
    """
    offset_SxB = jnp.arange(draws, dtype=jnp.float32)[:, None] * (length_B.astype(jnp.float32) / draws)[None]
    return jnp.mod(jnp.round(start_B.astype(jnp.float32)[None] + offset_SxB).astype(jnp.int32) - 1, length_B[None]) + 1


def stratified_counts(time_B: jax.Array, length_B: jax.Array, draws: int) -> jax.Array:
    """Masked counts (draws, B) from 1 to L: one in each of `draws` equal slices of (0, L], at `time_B` in [0, 1); exactly uniform."""
    time_SxB = jnp.mod(time_B[None] + jnp.arange(draws, dtype=jnp.float32)[:, None] / draws, 1.0)
    return jnp.minimum(jnp.floor(time_SxB * length_B[None]).astype(jnp.int32), length_B[None] - 1) + 1


def draw_counts(keys_B: jax.Array, length_B: jax.Array, draws: int, scheme: str) -> jax.Array:
    """Masked counts (draws, B), each uniform on 1 .. L.

    "plain": independent; "stratified" and "antithetic": evenly spread from one random start per row; "reference": LLaDA's own, whose
    counts are not quite uniform.
    """
    keys_B = step_keys(keys_B, 0, COUNT)
    most_B = jnp.maximum(length_B, 1)
    if scheme == "plain":
        counts_BxS = jax.vmap(lambda key, most: jax.random.randint(key, (draws,), 1, most + 1))(keys_B, most_B)
        return counts_BxS.T
    if scheme == "reference":
        return reference_counts(jax.vmap(lambda key, most: jax.random.randint(key, (), 1, most + 1))(keys_B, most_B), most_B, draws)
    if scheme in ("stratified", "antithetic"):
        return stratified_counts(jax.vmap(jax.random.uniform)(keys_B), most_B, draws)
    raise ValueError(f"likelihood scheme: found {scheme!r}, allowed are {', '.join(SCHEMES)}")


def masks(keys_B: jax.Array, draw: jax.Array, start_B: jax.Array, count_B: jax.Array, target_mask_BxT: jax.Array, valid_BxT: jax.Array,
          scheme: str) -> jax.Array:  # fmt: skip
    """The target positions that draw number `draw` masks: `count_B` of them, from a random order of its own.

    The antithetic scheme shares one random order per row and lays the draws' positions end to end around it, from `start_B` on: what one
    draw leaves out the next ones mask, and every token is masked about equally often. Each draw by itself still masks a uniform set.
    """
    shared = scheme == "antithetic"
    score_BxT = uniforms(position_keys(keys_B, jnp.zeros_like(draw) if shared else draw, MASK_ORDER, valid_BxT))
    rank_BxT = ranks(score_BxT, target_mask_BxT)
    if shared:
        length_Bx1 = jnp.maximum(jnp.sum(target_mask_BxT, axis=1, keepdims=True), 1)
        rank_BxT = jnp.mod(rank_BxT - start_B[:, None], length_Bx1)
    return (rank_BxT < count_B[:, None]) & target_mask_BxT


def masked_log_prob(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array,
    target_mask_BxT: jax.Array,
    valid_BxT: jax.Array,
    cfg_scale: float = 0.0,
    span: int | None = None,
    chunk: int = 0,
) -> jax.Array:
    """(L / l) times the summed log-probability of the l tokens under `mask_BxT`, given all others: one draw of the bound per row (nats).

    The head runs at `span` positions per row (static; default all), `chunk` at a time. With guidance the unconditional branch sees no
    token outside the targets.
    """
    span = span or tokens_BxT.shape[1]
    order_BxT = jnp.broadcast_to(-jnp.arange(tokens_BxT.shape[1], dtype=jnp.float32)[None], tokens_BxT.shape)
    positions_BxC = first(order_BxT, target_mask_BxT, span)
    noisy_BxT = jnp.where(mask_BxT, mask_id(config), tokens_BxT)
    targets_BxC = jnp.take_along_axis(tokens_BxT, positions_BxC, axis=1)
    if cfg_scale:
        logits_BxCxV = guided_logits(params, config, noisy_BxT, valid_BxT, ~target_mask_BxT, positions_BxC, cfg_scale)
        log_prob_BxC = jnp.take_along_axis(jax.nn.log_softmax(logits_BxCxV, axis=-1), targets_BxC[..., None], axis=-1)[..., 0]
    else:
        h_BxCxD = hidden_at(params, config, noisy_BxT, valid_BxT, positions_BxC)
        log_prob_BxC = transformer.log_probs(params, config, h_BxCxD, targets_BxC, chunk)
    counted_BxC = jnp.take_along_axis(mask_BxT, positions_BxC, axis=1)
    weight_B = jnp.sum(target_mask_BxT, axis=1) / jnp.maximum(jnp.sum(mask_BxT, axis=1), 1)
    return weight_B * jnp.sum(jnp.where(counted_BxC, log_prob_BxC, 0.0), axis=1)


@partial(jax.jit, static_argnames=("config", "draws", "scheme", "cfg_scale", "span", "chunk"))
def bound_draws(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    target_mask_BxT: jax.Array,
    valid_BxT: jax.Array,
    keys_B: jax.Array,
    draws: int = 16,
    scheme: str = "antithetic",
    cfg_scale: float = 0.0,
    span: int | None = None,
    chunk: int = 0,
) -> jax.Array:
    """`draws` estimates (S, B) of the bound on log p(targets | other tokens) of each row (nats), one forward pass of all rows each.

    A row's value depends on its tokens and its key alone, not on padding or the other rows.
    """
    target_mask_BxT = target_mask_BxT & valid_BxT
    counts_SxB = draw_counts(keys_B, jnp.sum(target_mask_BxT, axis=1), draws, scheme)

    start_SxB = jnp.cumsum(counts_SxB, axis=0) - counts_SxB

    def one(_: None, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        draw, start_B, count_B = inputs
        mask_BxT = masks(keys_B, draw, start_B, count_B, target_mask_BxT, valid_BxT, scheme)
        return None, masked_log_prob(params, config, tokens_BxT, mask_BxT, target_mask_BxT, valid_BxT, cfg_scale, span, chunk)

    with jax.named_scope("likelihood"):
        return jax.lax.scan(one, None, (jnp.arange(draws), start_SxB, counts_SxB))[1]


def log_likelihood(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    target_mask_BxT: jax.Array,
    valid_BxT: jax.Array,
    keys_B: jax.Array,
    draws: int = 16,
    **options: Any,
) -> jax.Array:
    """The mean of `bound_draws` per row: the Monte-Carlo lower bound on log p(targets | other tokens), in nats."""
    return jnp.mean(bound_draws(params, config, tokens_BxT, target_mask_BxT, valid_BxT, keys_B, draws, **options), axis=0)
