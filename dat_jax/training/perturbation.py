"""The inner maximisation: a continuous perturbation of the prompt's embeddings that makes a response likely.

CAT, arXiv 2405.15589, eq. 4; reference behavior: `src/embedding_attack.py` of Continuous-AdvTrain. Choices that differ from it, and why:
* The gradient is taken with respect to the perturbation alone, so nothing of the attack can leak into the weights.
* The perturbation and embedding + perturbation are float32 whatever the compute type: a sign step is of the size of bfloat16's spacing.
* A step's length is a share of the radius unless `absolute`, so the radius can bind at any width; the share of tokens at it is reported.
* The loss is a mean per example, so one long or easy response does not steer the others.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dat_jax.data.conversations import Conversations
from dat_jax.settings import check
from dat_jax.training.network import Found, Network, embed, example_mean, response_nll

OPTIMIZERS = ("sign", "normalized", "adam")
ITERATES = ("last", "best")


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How the perturbation is found; docs/decisions.md lists the settings of Continuous-AdvTrain."""

    steps: int = 10  # gradient-ascent steps
    radius: float = 0.05  # L2 radius per token, in units of the mean embedding norm
    narrowest: float = 1.0  # each row draws its radius at every training step, from this share of `radius` up to all of it; 1: all of it
    step_size: float = 0.25  # share of the radius that one step moves a token; with `absolute`, in embedding units per coordinate
    absolute: bool = False
    optimizer: str = "sign"  # sign | normalized | adam
    iterate: str = "last"  # last | best: which perturbation of the path is returned
    rows: int = 0  # embedding rows that count for the mean norm, the first ones; 0: all
    keep_products: bool = False  # keep what the layers' matrix products gave instead of recomputing it: a third faster, more memory

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {
            "steps": (self.steps >= 0, "an integer >= 0"),
            "radius": (self.radius >= 0, "a number >= 0"),
            "narrowest": (0 < self.narrowest <= 1, "a share > 0 and <= 1"),
            "step_size": (self.step_size > 0, "a number > 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, " | ".join(OPTIMIZERS)),
            "iterate": (self.iterate in ITERATES, " | ".join(ITERATES)),
            "rows": (self.rows >= 0, "an integer >= 0"),
        }
        check(self, key, rules)

    def validate_attack(self, key: str) -> None:
        """Raises ValueError where an evaluation's attack would draw smaller balls than it may use."""
        check(self, key, {"narrowest": (self.narrowest == 1, "1: an attack has all of its ball")})


def mean_embedding_norm(params: Any, rows: int = 0) -> jax.Array:
    """Returns the mean L2 norm of the embedding matrix's rows, the unit of the radius (all rows: the reference's choice)."""
    embedding_VxD = params["embedding"][:rows] if rows else params["embedding"]
    return jnp.mean(jnp.linalg.norm(embedding_VxD.astype(jnp.float32), axis=-1))


def project(delta_BxPxD: jax.Array, radius: jax.Array) -> jax.Array:
    """Scales each token's perturbation back into the L2 ball of `radius`, one for all or one per row (B, 1, 1)."""
    norm_BxPx1 = jnp.linalg.norm(delta_BxPxD, axis=-1, keepdims=True)
    return delta_BxPxD * jnp.minimum(1.0, radius / jnp.maximum(norm_BxPx1, 1e-12))


def direction(grad_BxPxD: jax.Array, moments, step, optimizer: str):
    """Returns the unit step against the gradient and the new Adam moments; a unit step has norm sqrt(D) (sign, adam) or 1 per token."""
    if optimizer == "sign":
        return -jnp.sign(grad_BxPxD), moments
    if optimizer == "normalized":
        return -grad_BxPxD / jnp.maximum(jnp.linalg.norm(grad_BxPxD, axis=-1, keepdims=True), 1e-12), moments
    first, second = moments
    first = 0.9 * first + 0.1 * grad_BxPxD
    second = 0.999 * second + 0.001 * jnp.square(grad_BxPxD)
    t = step + 1.0
    # No epsilon floor: gradients of a mean over a response are tiny, and Adam's direction must not depend on their scale.
    return -(first / (1 - 0.9**t)) / (jnp.sqrt(second / (1 - 0.999**t)) + 1e-20), (first, second)


def radii(rows: int, how: Perturbation, unit: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns each row's radius in embedding units, (B, 1, 1).

    A model that has met perturbations of one norm alone can learn to recognise that norm. Smaller ones then break it.
    """
    if key is None or how.narrowest == 1:
        return jnp.full((rows, 1, 1), how.radius) * unit
    return how.radius * unit * jax.random.uniform(key, (rows, 1, 1), minval=how.narrowest)


def random_start(network: Network, rows: Conversations, how: Perturbation, keys_B: jax.Array) -> jax.Array:
    """Returns where a restart begins, delta_BxPxD in each row's ball: per token a random direction, and a length uniform in the radius."""
    shape = (network.prompt_length, network.config.width)

    def draw(key: jax.Array) -> jax.Array:
        towards_PxD, length_Px1 = jax.random.normal(key, shape), jax.random.uniform(jax.random.fold_in(key, 1), (shape[0], 1))
        return length_Px1 * towards_PxD / jnp.linalg.norm(towards_PxD, axis=-1, keepdims=True)

    mask_BxPx1 = rows.prompt_mask_BxT[:, : network.prompt_length, None]
    return how.radius * mean_embedding_norm(network.params, how.rows) * jnp.where(mask_BxPx1, jax.vmap(draw)(keys_B), 0.0)


def perturb(
    network: Network, rows: Conversations, how: Perturbation, key: jax.Array | None = None, start_BxPxD: jax.Array | None = None
) -> Found:
    """Ascends log p(response | prompt + delta); finds delta_BxPxD at the embeddings, zero outside `prompt_mask`.

    key: of the step; where `narrowest` is below 1, each row's radius is drawn by it. None: every row has all of the radius.
    start_BxPxD: where the ascent starts, a point of the ball; None: at zero.
    Metrics: `attack/norm` (mean L2 norm over perturbed tokens, in units of the mean embedding norm) and `attack/at_radius` (share of
    perturbed tokens on the ball's surface). CAT, arXiv 2405.15589, eq. 4.
    """
    config = dataclasses.replace(network.config, keep_products=network.config.keep_products or how.keep_products)
    network = network.replace(config=config)  # type: ignore[attr-defined]
    e_BxTxD = jax.lax.stop_gradient(embed(network, rows))
    mask_BxPx1 = rows.prompt_mask_BxT[:, : network.prompt_length, None]
    unit = mean_embedding_norm(network.params, how.rows)
    radius_Bx1x1 = radii(rows.tokens_BxT.shape[0], how, unit, key)
    coordinates = 1 if how.optimizer == "normalized" else e_BxTxD.shape[-1]
    step_size = how.step_size if how.absolute else how.step_size * radius_Bx1x1 / jnp.sqrt(coordinates)

    def loss(delta_BxPxD):
        nll_B = example_mean(response_nll(network, e_BxTxD, rows, {0: delta_BxPxD}), rows, network.prompt_length)
        return jnp.sum(nll_B), nll_B

    def ascend(carry, step):
        delta_BxPxD, moments, best_BxPxD, best_B = carry
        (_, nll_B), grad_BxPxD = jax.value_and_grad(loss, has_aux=True)(delta_BxPxD)
        better_B = nll_B < best_B
        best_BxPxD = jnp.where(better_B[:, None, None], delta_BxPxD, best_BxPxD)
        move_BxPxD, moments = direction(grad_BxPxD, moments, step, how.optimizer)
        delta_BxPxD = project(delta_BxPxD + step_size * jnp.where(mask_BxPx1, move_BxPxD, 0.0), radius_Bx1x1)
        return (delta_BxPxD, moments, best_BxPxD, jnp.minimum(nll_B, best_B)), nll_B

    zeros_BxPxD = jnp.zeros((*mask_BxPx1.shape[:2], e_BxTxD.shape[-1]), jnp.float32)
    moments = (zeros_BxPxD, zeros_BxPxD) if how.optimizer == "adam" else ()
    start_BxPxD = zeros_BxPxD if start_BxPxD is None else start_BxPxD
    start = (start_BxPxD, moments, start_BxPxD, jnp.full(zeros_BxPxD.shape[0], jnp.inf))
    (delta_BxPxD, _, best_BxPxD, best_B), nll_SxB = jax.lax.scan(ascend, start, jnp.arange(how.steps, dtype=jnp.float32))
    if how.iterate == "best" and how.steps:
        last_better_B = loss(delta_BxPxD)[1] < best_B
        delta_BxPxD = jnp.where(last_better_B[:, None, None], delta_BxPxD, best_BxPxD)
    delta_BxPxD = jax.lax.stop_gradient(delta_BxPxD)
    norm_BxP = jnp.linalg.norm(delta_BxPxD, axis=-1)
    tokens = jnp.maximum(jnp.sum(mask_BxPx1), 1)
    metrics = {
        "attack/norm": jnp.sum(norm_BxP) / tokens / unit,
        "attack/at_radius": jnp.sum((norm_BxP >= radius_Bx1x1[..., 0] * (1 - 1e-4)) & mask_BxPx1[..., 0]) / tokens,
    }
    return Found(delta={0: delta_BxPxD}, nll_before_B=nll_SxB[0] if how.steps else loss(delta_BxPxD)[1], metrics=metrics)
