"""The losses of the outer minimisation: away from the harmful response, toward the refusal, utility on benign chats.

L = away_weight * A + toward_weight * T + utility_weight * U (CAT, arXiv 2405.15589, eq. 5; C-AdvUL in Continuous-AdvTrain), with

    A = -CE(harmful | x + delta) up to the away cutoff, beyond it -cutoff - slope * CE        (the loss is unbounded below without it)
    T =  CE(refusal | x + delta) down to the toward cutoff, below it cutoff + slope * CE
    U =  CE(benign response | benign prompt), no perturbation

The reference pools all tokens of a micro-batch before the cutoff, so one easy row switches it for all. Here cross-entropy and cutoff
are per example, then averaged over examples; `reference` pools as the reference does. The number of adversarial rows is fixed per batch, so
neither choice lets the mixture change a weight.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights and cutoffs of the three losses; defaults of Continuous-AdvTrain's `adv_train_ul`."""

    away_weight: float = 0.5
    toward_weight: float = 0.5
    utility_weight: float = 1.0
    away_cutoff: float = 5.0  # nats per token
    toward_cutoff: float = 0.5  # nats per token
    slope: float = 0.001  # what is left of the gradient beyond a cutoff
    reference: bool = False  # pool cross-entropies over the batch's tokens before the cutoff, as the reference does

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        for name in ("away_weight", "toward_weight", "utility_weight", "away_cutoff", "toward_cutoff", "slope"):
            if getattr(self, name) < 0:
                raise ValueError(f"config.{key}.{name} is {getattr(self, name)!r}; allowed: a number >= 0")


def cross_entropy(nll_BxR: jax.Array, mask_BxR: jax.Array, pooled: bool) -> jax.Array:
    """Returns the mean over each example's tokens (B,), or with `pooled` the mean over all tokens (1,); nats per token."""
    if pooled:
        return (jnp.sum(nll_BxR * mask_BxR) / jnp.maximum(jnp.sum(mask_BxR), 1))[None]
    return jnp.sum(nll_BxR * mask_BxR, axis=1) / jnp.maximum(jnp.sum(mask_BxR, axis=1), 1)


def away_loss(ce_B: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean of -CE, all but flat once CE has passed the away cutoff."""
    cutoff, slope = objective.away_cutoff, objective.slope
    return jnp.mean(jnp.where(ce_B <= cutoff, -ce_B, -cutoff - slope * ce_B))


def toward_loss(ce_B: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean of CE, all but flat once CE has fallen below the toward cutoff."""
    cutoff, slope = objective.toward_cutoff, objective.slope
    return jnp.mean(jnp.where(ce_B >= cutoff, ce_B, cutoff + slope * ce_B))
