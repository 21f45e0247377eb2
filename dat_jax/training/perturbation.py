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
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.lora import Lora

OPTIMIZERS = ("sign", "normalized", "adam")
ITERATES = ("last", "best")


@dataclasses.dataclass(frozen=True)
class Attack:
    """How the perturbation is found; `reference` in CONTRIBUTING.md lists the settings of Continuous-AdvTrain."""

    steps: int = 10  # gradient-ascent steps
    radius: float = 0.05  # L2 radius per token, in units of the mean embedding norm
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
            "step_size": (self.step_size > 0, "a number > 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, " | ".join(OPTIMIZERS)),
            "iterate": (self.iterate in ITERATES, " | ".join(ITERATES)),
            "rows": (self.rows >= 0, "an integer >= 0"),
        }
        for name, (ok, allowed) in rules.items():
            if not ok:
                raise ValueError(f"config.{key}.{name} is {getattr(self, name)!r}; allowed: {allowed}")


def mean_embedding_norm(params: Any, rows: int = 0) -> jax.Array:
    """Returns the mean L2 norm of the embedding matrix's rows, the unit of the radius (all rows: the reference's choice)."""
    embedding_VxD = params["embedding"][:rows] if rows else params["embedding"]
    return jnp.mean(jnp.linalg.norm(embedding_VxD.astype(jnp.float32), axis=-1))


def project(delta_BxPxD: jax.Array, radius: jax.Array) -> jax.Array:
    """Scales each token's perturbation back into the L2 ball of `radius`."""
    norm_BxPx1 = jnp.linalg.norm(delta_BxPxD, axis=-1, keepdims=True)
    return delta_BxPxD * jnp.minimum(1.0, radius / jnp.maximum(norm_BxPx1, 1e-12))


def response_nll(params, config: ModelConfig, e_BxTxD, batch: Conversations, prompt_length: int, lora: Lora | None = None, chunk: int = 0):
    """Returns nll_BxR float32 of the response tokens given embeddings of the whole rows; zero outside the response.

    The head runs at the response's positions alone (a static slice of the layout).
    """
    h_BxTxD = transformer.hidden(params, config, e_BxTxD, batch.valid_BxT, lora=lora)
    targets_BxR = batch.tokens_BxT[:, prompt_length:]
    logp_BxR = transformer.log_probs(params, config, h_BxTxD[:, prompt_length - 1 : -1], targets_BxR, chunk=chunk)
    return jnp.where(batch.response_mask_BxT[:, prompt_length:], -logp_BxR, 0.0)


def example_mean(nll_BxR: jax.Array, batch: Conversations, prompt_length: int) -> jax.Array:
    """Returns the mean over each example's response tokens, (B,); 0 for a row without response."""
    count_B = jnp.sum(batch.response_mask_BxT[:, prompt_length:], axis=1)
    return jnp.sum(nll_BxR, axis=1) / jnp.maximum(count_B, 1)


def add(e_BxTxD: jax.Array, delta_BxPxD: jax.Array) -> jax.Array:
    """Adds the perturbation to the prompt block in float32 (the dtype the residual stream then keeps)."""
    prompt_length = delta_BxPxD.shape[1]
    e_BxTxD = e_BxTxD.astype(jnp.float32)
    return jnp.concatenate([e_BxTxD[:, :prompt_length] + delta_BxPxD, e_BxTxD[:, prompt_length:]], axis=1)


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


def perturb(
    params, config: ModelConfig, batch: Conversations, attack: Attack, prompt_length: int, lora: Lora | None = None, chunk: int = 0
):
    """Ascends log p(response | prompt + delta); returns delta_BxPxD, zero outside `prompt_mask`, and what the attack did.

    The second value: `nll_before_B` (nats per response token at delta = 0), `norm` (mean L2 norm over perturbed tokens, in units of the
    mean embedding norm) and `at_radius` (share of perturbed tokens on the ball's surface). CAT, arXiv 2405.15589, eq. 4.
    """
    config = dataclasses.replace(config, keep_products=config.keep_products or attack.keep_products)
    e_BxTxD = jax.lax.stop_gradient(transformer.embed(params, config, batch.tokens_BxT))
    mask_BxPx1 = batch.prompt_mask_BxT[:, :prompt_length, None]
    unit = mean_embedding_norm(params, attack.rows)
    radius = attack.radius * unit
    coordinates = 1 if attack.optimizer == "normalized" else e_BxTxD.shape[-1]
    step_size = attack.step_size if attack.absolute else attack.step_size * radius / jnp.sqrt(coordinates)

    def loss(delta_BxPxD):
        nll_BxR = response_nll(params, config, add(e_BxTxD, delta_BxPxD), batch, prompt_length, lora, chunk)
        nll_B = example_mean(nll_BxR, batch, prompt_length)
        return jnp.sum(nll_B), nll_B

    def ascend(carry, step):
        delta_BxPxD, moments, best_BxPxD, best_B = carry
        (_, nll_B), grad_BxPxD = jax.value_and_grad(loss, has_aux=True)(delta_BxPxD)
        better_B = nll_B < best_B
        best_BxPxD = jnp.where(better_B[:, None, None], delta_BxPxD, best_BxPxD)
        move_BxPxD, moments = direction(grad_BxPxD, moments, step, attack.optimizer)
        delta_BxPxD = project(delta_BxPxD + step_size * jnp.where(mask_BxPx1, move_BxPxD, 0.0), radius)
        return (delta_BxPxD, moments, best_BxPxD, jnp.minimum(nll_B, best_B)), nll_B

    zeros_BxPxD = jnp.zeros((*mask_BxPx1.shape[:2], e_BxTxD.shape[-1]), jnp.float32)
    moments = (zeros_BxPxD, zeros_BxPxD) if attack.optimizer == "adam" else ()
    start = (zeros_BxPxD, moments, zeros_BxPxD, jnp.full(zeros_BxPxD.shape[0], jnp.inf))
    (delta_BxPxD, _, best_BxPxD, best_B), nll_SxB = jax.lax.scan(ascend, start, jnp.arange(attack.steps, dtype=jnp.float32))
    if attack.iterate == "best" and attack.steps:
        last_better_B = loss(delta_BxPxD)[1] < best_B
        delta_BxPxD = jnp.where(last_better_B[:, None, None], delta_BxPxD, best_BxPxD)
    delta_BxPxD = jax.lax.stop_gradient(delta_BxPxD)
    norm_BxP = jnp.linalg.norm(delta_BxPxD, axis=-1)
    tokens = jnp.maximum(jnp.sum(mask_BxPx1), 1)
    return delta_BxPxD, {
        "nll_before_B": nll_SxB[0] if attack.steps else loss(delta_BxPxD)[1],
        "norm": jnp.sum(norm_BxP) / tokens / unit,
        "at_radius": jnp.sum((norm_BxP >= radius * (1 - 1e-4)) & mask_BxPx1[..., 0]) / tokens,
    }
