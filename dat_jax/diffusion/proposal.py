"""From logits to proposed tokens and the confidence that orders them: pure functions, no model.

Reproduces LLaDA `generate.py` (confidence of the untempered distribution) and Dream `sample_tokens` (of the tempered, filtered one).
B batch, C candidate positions, N positions, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

CONFIDENCES = ("low_confidence", "margin", "entropy")


@struct.dataclass
class Proposal:
    """One token per candidate position, the confidence in it, its log-probability under the model (nats)."""

    tokens_BxC: jax.Array
    confidence_BxC: jax.Array
    log_prob_BxC: jax.Array


def ranks(scores_BxN: jax.Array, among_BxN: jax.Array) -> jax.Array:
    """Rank of each score within its row, 0 the highest, ties to the lower index; positions outside `among_BxN` come last."""
    order_BxN = jnp.argsort(jnp.where(among_BxN, -scores_BxN, jnp.inf), axis=-1, stable=True)
    return jnp.argsort(order_BxN, axis=-1, stable=True)


def first(scores_BxN: jax.Array, among_BxN: jax.Array, count: int) -> jax.Array:
    """Indices (B, count) of the `count` highest scores among `among_BxN`, best first, ties to the lower index."""
    return jnp.argsort(jnp.where(among_BxN, -scores_BxN, jnp.inf), axis=-1, stable=True)[:, :count]


def forbid(logits_xV: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """The logits with -inf at the token ids that must not be drawn."""
    if not tokens:
        return logits_xV
    banned_V = np.isin(np.arange(logits_xV.shape[-1]), tokens)
    return jnp.where(banned_V.reshape((1,) * (logits_xV.ndim - 1) + (-1,)), -jnp.inf, logits_xV)


def keep_top_p(logits_xV: jax.Array, top_p: float) -> jax.Array:
    """Logits with -inf outside the smallest set of likeliest tokens whose probability exceeds `top_p` (Dream top_p_logits)."""
    order_xV = jnp.argsort(-logits_xV, axis=-1, stable=True)
    sorted_xV = jnp.take_along_axis(logits_xV, order_xV, axis=-1)
    reached_xV = jnp.cumsum(jax.nn.softmax(sorted_xV, axis=-1), axis=-1)
    before_xV = jnp.concatenate([jnp.zeros_like(reached_xV[..., :1]), reached_xV[..., :-1]], axis=-1)
    kept_xV = jnp.take_along_axis(before_xV <= top_p, jnp.argsort(order_xV, axis=-1), axis=-1)
    return jnp.where(kept_xV, logits_xV, -jnp.inf)


def keep_top_k(logits_xV: jax.Array, top_k: int) -> jax.Array:
    """Logits with -inf below the `top_k`-th largest (Dream top_k_logits)."""
    smallest_x1 = jax.lax.top_k(logits_xV, min(top_k, logits_xV.shape[-1]))[0][..., -1:]
    return jnp.where(logits_xV < smallest_x1, -jnp.inf, logits_xV)


def negative_entropy(logits_xV: jax.Array) -> jax.Array:
    """Sum of p log(p + 1e-10), the confidence of Dream's `entropy` algorithm."""
    p_xV = jax.nn.softmax(logits_xV, axis=-1)
    return jnp.sum(p_xV * jnp.log(p_xV + 1e-10), axis=-1)


def draw(logits_xV: jax.Array, uniform_xx2: jax.Array) -> jax.Array:
    """Token ids from softmax(logits), by inversion in two levels: a block of about sqrt(V) tokens, then a token in it.

    Two uniform numbers per draw instead of V Gumbel ones; a fresh one within the block keeps tokens of tiny probability exact, which one
    float32 number over a large vocabulary would not.
    """
    vocabulary = logits_xV.shape[-1]
    width = math.ceil(math.sqrt(vocabulary))
    weight_xV = jnp.exp(logits_xV - jnp.max(logits_xV, axis=-1, keepdims=True))
    missing = [(0, 0)] * (logits_xV.ndim - 1) + [(0, -vocabulary % width)]
    weight_xNxW = jnp.pad(weight_xV, missing).reshape(*logits_xV.shape[:-1], -1, width)

    def invert(weight_xN: jax.Array, uniform_x: jax.Array) -> jax.Array:
        reached_xN = jnp.cumsum(weight_xN, axis=-1)
        index_x = jnp.sum(reached_xN <= uniform_x[..., None] * reached_xN[..., -1:], axis=-1)
        # Rounding may reach the total; the last entry that has any weight is then the right one.
        last_x = weight_xN.shape[-1] - 1 - jnp.argmax(weight_xN[..., ::-1] > 0, axis=-1)
        return jnp.minimum(index_x, last_x)

    block_x = invert(jnp.sum(weight_xNxW, axis=-1), uniform_xx2[..., 0])
    chosen_xW = jnp.take_along_axis(weight_xNxW, block_x[..., None, None], axis=-2)[..., 0, :]
    return (block_x * width + invert(chosen_xW, uniform_xx2[..., 1])).astype(jnp.int32)


def propose(
    logits_BxCxV: jax.Array,
    uniform_BxCx2: jax.Array | None = None,
    gumbel_BxCxV: jax.Array | None = None,
    *,
    temperature: float,
    confidence: str,
    forbidden: tuple[int, ...] = (),
    late: tuple[int, ...] = (),
    top_p: float = 1.0,
    top_k: int = 0,
    tempered_confidence: bool = False,
) -> Proposal:
    """Draws a token per position from softmax(logits / temperature) (argmax at 0) and says how confident the model is in it.

    The draw uses `uniform_BxCx2`, or argmax(logits / temperature + `gumbel_BxCxV`) to replay recorded noise.
    confidence: "low_confidence" p(token), "margin" p1 - p2, "entropy" sum p log p, "none" 0. `late` tokens get confidence 0
    (LLaDA confidence_eos_eot_inf). `log_prob` is always of the unfiltered model distribution.
    """
    allowed_BxCxV = forbid(logits_BxCxV, forbidden)
    sharpened_BxCxV = allowed_BxCxV / temperature if temperature > 0 else allowed_BxCxV
    if top_p < 1.0:
        sharpened_BxCxV = keep_top_p(sharpened_BxCxV, top_p)
    if top_k > 0:
        sharpened_BxCxV = keep_top_k(sharpened_BxCxV, top_k)
    if temperature > 0 and uniform_BxCx2 is not None:
        tokens_BxC = draw(sharpened_BxCxV, uniform_BxCx2)
    else:
        noisy_BxCxV = sharpened_BxCxV if gumbel_BxCxV is None else sharpened_BxCxV + gumbel_BxCxV
        tokens_BxC = jnp.argmax(noisy_BxCxV, axis=-1).astype(jnp.int32)

    def log_prob(of_BxCxV: jax.Array) -> jax.Array:
        chosen_BxC = jnp.take_along_axis(of_BxCxV, tokens_BxC[..., None], axis=-1)[..., 0]
        return chosen_BxC - jax.nn.logsumexp(of_BxCxV, axis=-1)

    judged_BxCxV = sharpened_BxCxV if tempered_confidence else forbid(allowed_BxCxV, late)
    if confidence == "low_confidence":
        confidence_BxC = jnp.exp(log_prob(judged_BxCxV))
    elif confidence == "margin":
        top_BxCx2 = jax.lax.top_k(jax.nn.softmax(judged_BxCxV, axis=-1), 2)[0]
        confidence_BxC = top_BxCx2[..., 0] - top_BxCx2[..., 1]
    elif confidence == "entropy":
        confidence_BxC = negative_entropy(judged_BxCxV)
    else:
        confidence_BxC = jnp.zeros(tokens_BxC.shape, jnp.float32)
    return Proposal(tokens_BxC=tokens_BxC, confidence_BxC=confidence_BxC, log_prob_BxC=log_prob(logits_BxCxV))
