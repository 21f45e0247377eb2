"""The losses of the outer minimisation: away from the harmful response, toward the refusal, utility on benign chats.

L = away_weight * A + toward_weight * T + utility_weight * U (CAT, arXiv 2405.15589, eq. 5; C-AdvUL in Continuous-AdvTrain), with

    A = -CE(harmful | x + delta) up to the away cutoff, beyond it -cutoff - slope * CE        (the loss is unbounded below without it)
        or with `away="log_1_minus_p"` -log(1 - p) of each token, nothing where log p is below -cutoff        (LAT, HarmBench's R2D2)
    T =  CE(refusal | x + delta) down to the toward cutoff, below it cutoff + slope * CE
    U =  CE(benign response | benign prompt), no perturbation; or with `retention="kl"` KL(model before training || model) there,
         with `"reverse_kl"` KL(model || model before training)

What CE is taken over before the cutoff is `cutoff_over`. The reference pools all tokens of a micro-batch, so one easy row switches the
cutoff for all ("batch"). "example": the mean over an example's tokens, which one improbable token can bring beyond the cutoff, the first of
the response usually, while the rest stays as likely as it was: a prefilled answer then goes on. "token": each token by itself. Tokens are
averaged within examples, then examples. The number of adversarial rows is fixed per batch, so no choice lets the mixture change a weight.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dat_jax.settings import check

CUTOFFS = ("token", "example", "batch")
RETENTIONS = ("nll", "kl", "reverse_kl")
AWAY = ("nll", "log_1_minus_p")
CERTAIN = 1e-6  # nats: likelier tokens count as this likely, for 1 - p is rounded to 0 there


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights and cutoffs of the three losses; defaults of Continuous-AdvTrain's `adv_train_ul`."""

    away_weight: float = 0.5
    toward_weight: float = 0.5
    utility_weight: float = 1.0
    away_cutoff: float = 5.0  # nats per token
    toward_cutoff: float = 0.5  # nats per token
    slope: float = 0.001  # what is left of the gradient beyond a cutoff
    away: str = "nll"  # nll | log_1_minus_p: what is raised to lead away from the harmful response
    retention: str = "nll"  # the utility loss: nll of the chats' responses | kl of the model before training from the model | reverse_kl
    cutoff_over: str = "example"  # token | example | batch (the reference's): what a cross-entropy is averaged over before the cutoff

    @property
    def compares(self) -> bool:
        """Whether the utility loss looks at the model before training."""
        return self.retention != "nll"

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        numbers = ("away_weight", "toward_weight", "utility_weight", "away_cutoff", "toward_cutoff", "slope")
        rules = {name: (getattr(self, name) >= 0, "a number >= 0") for name in numbers}
        rules |= {"away": (self.away in AWAY, " | ".join(AWAY))}
        rules |= {"retention": (self.retention in RETENTIONS, " | ".join(RETENTIONS))}
        check(self, key, rules | {"cutoff_over": (self.cutoff_over in CUTOFFS, " | ".join(CUTOFFS))})


def cross_entropy(nll_BxR: jax.Array, mask_BxR: jax.Array, pooled: bool = False) -> jax.Array:
    """Returns the mean over each example's tokens (B,), or with `pooled` the mean over all tokens (1,); nats per token."""
    if pooled:
        return (jnp.sum(nll_BxR * mask_BxR) / jnp.maximum(jnp.sum(mask_BxR), 1))[None]
    return jnp.sum(nll_BxR * mask_BxR, axis=1) / jnp.maximum(jnp.sum(mask_BxR, axis=1), 1)


def away_loss(nll_BxR: jax.Array, mask_BxR: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean of -CE, all but flat once CE has passed the away cutoff; or of -log(1 - p), flat for tokens beyond it."""
    cutoff, slope = objective.away_cutoff, objective.slope
    if objective.away == "log_1_minus_p":
        return jnp.mean(cross_entropy(unlikely(nll_BxR, cutoff), mask_BxR))
    return _mean(lambda ce: jnp.where(ce <= cutoff, -ce, -cutoff - slope * ce), nll_BxR, mask_BxR, objective)


def unlikely(nll_BxR: jax.Array, cutoff: float) -> jax.Array:
    """Returns -log(1 - p) of each token in nats, 0 where log p is below -cutoff (`log_1_minus_p_loss` of HarmBench and LAT)."""
    return jnp.where(nll_BxR > cutoff, 0.0, -jnp.log(-jnp.expm1(-jnp.maximum(nll_BxR, CERTAIN))))


def toward_loss(nll_BxR: jax.Array, mask_BxR: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean of CE, all but flat once CE has fallen below the toward cutoff."""
    cutoff, slope = objective.toward_cutoff, objective.slope
    return _mean(lambda ce: jnp.where(ce >= cutoff, ce, cutoff + slope * ce), nll_BxR, mask_BxR, objective)


def _mean(cut: Callable[[jax.Array], jax.Array], nll_BxR: jax.Array, mask_BxR: jax.Array, objective: Objective) -> jax.Array:
    if objective.cutoff_over == "token":
        return jnp.mean(cross_entropy(cut(nll_BxR), mask_BxR))
    return jnp.mean(cut(cross_entropy(nll_BxR, mask_BxR, pooled=objective.cutoff_over == "batch")))
