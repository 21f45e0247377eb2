"""Targeted latent adversarial training (LAT, arXiv 2407.15549): CAT's losses under perturbations of the embeddings and of chosen layers.

The adversary makes the harmful response likely and the refusal unlikely; the weights are updated several times on one perturbation:

    adversary:  toward_weight * CE(harmful | x + delta) + away_weight * mean -log(1 - p(refusal | x + delta))
    defence:    toward_weight * CE(refusal) + away_weight * mean -log(1 - p(harmful)) + utility_weight * (NLL or KL on benign chats)

Defaults are the reference's for Llama-2-7B-chat; those for Llama-3-8B-Instruct are the preset lat_llama3 of presets.py. It perturbs what
the MLP of layer l adds to the residual stream. That is the stream before layer l + 1 (for models without a norm behind the MLP), which is
how sites are counted here: its layers 8, 16, 24, 30 are the sites 9, 17, 25, 31. Its radius of 6 is absolute and fits no other model. Its
KL is divided by its own value; here it is the KL.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dat_jax.data.pipeline import Batch
from dat_jax.methods import cat
from dat_jax.methods.method import Method, StepShape
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.transformer import Delta
from dat_jax.settings import check
from dat_jax.training.losses import Objective, cross_entropy, unlikely
from dat_jax.training.network import Found, Network, embed, example_mean, response_nll
from dat_jax.training.perturbation import Perturbation, operations, perturb

PERTURBATION = Perturbation(
    steps=16, sites=(0, 9, 17, 25, 31), radius=6.0, absolute_radius=True, step_size=0.05, absolute=True, optimizer="adam"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.lat."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: PERTURBATION)
    adversary_toward: float = 0.5  # weight of the harmful response's likelihood in the attack
    adversary_away: float = 0.5  # weight of the refusal's unlikelihood in the attack
    updates: int = 4  # of the weights on each perturbation
    objective: Objective = dataclasses.field(default_factory=lambda: Objective(utility_weight=1.5, away="log_1_minus_p", toward_cutoff=0.0))

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {name: (getattr(self, name) >= 0, "a number >= 0") for name in ("adversary_toward", "adversary_away")}
        check(self, key, rules | {"updates": (self.updates >= 1, "an integer >= 1")})


def inner(network: Network, batch: Batch, key: jax.Array, settings: Settings) -> Found:
    """Perturbs embeddings and layers so that the harmful responses become likely and the refusals unlikely."""
    P, cutoff, B = network.prompt_length, settings.objective.away_cutoff, len(batch.away.tokens_BxT)
    rows = jax.tree.map(lambda *blocks: jnp.concatenate(blocks), batch.away, batch.toward)

    def adversary(network: Network, delta: Delta) -> jax.Array:
        both = jax.tree.map(lambda delta_BxPxD: jnp.concatenate([delta_BxPxD, delta_BxPxD]), delta)
        nll_BxR = response_nll(network, embed(network, rows), rows, both)
        harmful_BxR, refusal_BxR = nll_BxR[:B], nll_BxR[B:]
        unlikely_B = cross_entropy(unlikely(refusal_BxR, cutoff), batch.toward.response_mask_BxT[:, P:])
        return settings.adversary_toward * example_mean(harmful_BxR, batch.away, P) + settings.adversary_away * unlikely_B

    found = perturb(network, batch.away, settings.perturbation, key, adversary=adversary)
    before_BxR = response_nll(network, embed(network, batch.away), batch.away)
    return found.replace(nll_before_B=jax.lax.stop_gradient(example_mean(before_BxR, batch.away, P)))  # type: ignore[attr-defined]


def loss(
    network: Network, reference: Network | None, batch: Batch, found: Found, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """CAT's loss, all adversarial rows perturbed."""
    return cat.loss(network, reference, batch, found, key, cat.Settings(settings.perturbation, objective=settings.objective))


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: the attack on away and toward rows, the loss before it, then each update."""
    length, how = shape.prompt + shape.response, settings.perturbation
    rows = Pass(shape.adversarial, length, shape.response)
    attack = operations(model, how, rows, adversary=2 * shape.adversarial) + flops.forward(model, rows)
    found = cat.update_flops(model, settings.objective, attack, shape)
    return found | {"defence": settings.updates * found["defence"]}


METHOD = Method(
    name="lat",
    title="LAT",
    paper="targeted latent adversarial training (arXiv 2407.15549)",
    prompts="requests",
    settings=Settings,
    inner=inner,
    loss=loss,
    flops=step_flops,
    needs_reference=cat.METHOD.needs_reference,
    updates=lambda settings: settings.updates,
    about=lambda settings: f"{settings.perturbation.steps} attack steps, {settings.updates} updates",
    terms=cat.METHOD.terms,
)
DISTRIBUTIONAL = dataclasses.replace(
    METHOD, name="dat_lat", title="DAT + LAT", paper="LAT on the prompts of DAT", prompts="sampled", group="lat"
)
