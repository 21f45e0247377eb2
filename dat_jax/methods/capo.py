"""CAPO (C-AdvIPO in Continuous-AdvTrain, arXiv 2405.15589): identity preference optimization of refusals under attack.

lp is the mean log-probability of a response's tokens, delta* the perturbation of CAT, and "before" the model before training:

    h = [lp(refusal | x + delta*) - lp(harmful | x + delta*)] - [lp_before(refusal | x) - lp_before(harmful | x)]        arXiv 2310.12036
    L = preference_weight * mean (h - 1 / (2 beta))^2 + utility_weight * NLL(benign chat)

Two things differ from the published code, which has mistakes there (docs/decisions.md): the log-probabilities before training belong to the
same row, not to the row counted from the other end; and a harmful token beyond the away cutoff counts as the cutoff, not as certain.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dat_jax.data.pipeline import Batch
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.settings import check
from dat_jax.training.losses import cross_entropy
from dat_jax.training.network import Found, Network, embed, response_nll
from dat_jax.training.perturbation import Perturbation, operations, perturb


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.capo; defaults of `adv_train_ipo`, whose utility weight is 0."""

    perturbation: Perturbation = dataclasses.field(default_factory=Perturbation)
    beta: float = 0.25  # 1 / (2 beta) is the margin that the preference is drawn to, in nats per token
    preference_weight: float = 1.0
    utility_weight: float = 0.0
    away_cutoff: float = 5.0  # nats: a harmful token that is less likely counts as this unlikely

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {name: (getattr(self, name) >= 0, "a number >= 0") for name in ("preference_weight", "utility_weight", "away_cutoff")}
        check(self, key, rules | {"beta": (self.beta > 0, "a number > 0")})


def inner(network: Network, batch: Batch, key: jax.Array, settings: Settings) -> Found:
    """Perturbs the prompts so that the harmful responses become likely, as CAT does."""
    return perturb(network, batch.away, settings.perturbation, key)


def loss(
    network: Network, reference: Network, batch: Batch, found: Found, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms."""
    del key
    P = network.prompt_length

    def nats(model: Network, rows, delta=None, cutoff: float = jnp.inf) -> jax.Array:
        nll_BxR = response_nll(model, embed(model, rows), rows, delta)
        return cross_entropy(jnp.minimum(nll_BxR, cutoff), rows.response_mask_BxT[:, P:])

    harmful_B, refusal_B = nats(network, batch.away, found.delta, settings.away_cutoff), nats(network, batch.toward, found.delta)
    before_B = nats(reference, batch.away, cutoff=settings.away_cutoff) - nats(reference, batch.toward)
    preferred_B = harmful_B - refusal_B - jax.lax.stop_gradient(before_B)
    preference = jnp.mean((preferred_B - 0.5 / settings.beta) ** 2)
    utility = jnp.mean(nats(network, batch.utility))
    total = settings.preference_weight * preference + settings.utility_weight * utility
    metrics = {"loss/total": total, "loss/preference": preference, "loss/utility": utility, "nll/refusal": jnp.mean(refusal_B)}
    return total, metrics | {"preference": jnp.mean(preferred_B)}


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: the attack, the update, and the model before training on the adversarial rows."""
    length = shape.prompt + shape.response
    adversarial, both = Pass(shape.adversarial, length, shape.response), Pass(2 * shape.adversarial, length, shape.response)
    outer = Pass(2 * shape.adversarial + shape.utility, length, shape.response)
    found = flops.train_step(model, operations(model, settings.perturbation, adversarial), outer, shape.rank)
    return found | {"defence": found["defence"] + flops.forward(model, both)}


METHOD = Method(
    name="capo",
    title="CAPO",
    paper="continuous adversarial preference optimization (arXiv 2405.15589)",
    prompts="requests",
    settings=Settings,
    inner=inner,
    loss=loss,
    flops=step_flops,
    needs_reference=lambda settings: True,
    about=lambda settings: f"{settings.perturbation.steps} attack steps",
    terms=(
        Term("loss/preference", "Preference loss", "squared distance of the preference from its margin", said=True),
        Term("loss/utility", "Utility loss", "nats per token on benign chats", said=True),
        Term("preference", "Preference", "nats per token by which the refusal gained on the harmful response"),
        Term("attack/norm", "Norm of the perturbation", "in mean embedding norms, per token"),
    ),
)
DISTRIBUTIONAL = dataclasses.replace(
    METHOD, name="dat_capo", title="DAT + CAPO", paper="CAPO on the prompts of DAT", prompts="sampled", group="capo"
)
