"""Continuous adversarial training (CAT, arXiv 2405.15589; C-AdvUL in Continuous-AdvTrain): away, toward and utility loss under attack.

delta* = argmax_{||delta_t|| <= eps mean||E||}  log p(harmful response | x + delta)                                       eq. 4
L = away_weight * A(y | x + delta*) + toward_weight * T(refusal | x + delta*) + utility_weight * NLL(benign chat)         eq. 5
"""

import dataclasses

import jax
import jax.numpy as jnp

from dat_jax.data.pipeline import Batch
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.training.losses import Objective, away_loss, cross_entropy, toward_loss
from dat_jax.training.network import Found, Network, embed, response_nll
from dat_jax.training.perturbation import Perturbation, perturb


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.cat, which DAT shares."""

    perturbation: Perturbation = dataclasses.field(default_factory=Perturbation)
    objective: Objective = dataclasses.field(default_factory=Objective)


def inner(network: Network, batch: Batch, key: jax.Array, settings: Settings) -> Found:
    """Perturbs the prompts so that the harmful responses become likely."""
    return perturb(network, batch.away, settings.perturbation, key)


def loss(
    network: Network, reference: Network | None, batch: Batch, found: Found, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms; away, toward and utility rows go through one forward pass.

    The refusal is learned under the perturbation that made the harmful response likely; utility rows are not perturbed.
    """
    del reference, key
    objective, P = settings.objective, network.prompt_length
    rows = jax.tree.map(lambda *blocks: jnp.concatenate(blocks), batch.away, batch.toward, batch.utility)
    adversarial, benign = batch.away.tokens_BxT.shape[0], batch.utility.tokens_BxT.shape[0]
    delta = {
        site: jnp.concatenate([delta_BxPxD, delta_BxPxD, jnp.zeros((benign, *delta_BxPxD.shape[1:]), jnp.float32)])
        for site, delta_BxPxD in found.delta.items()
    }
    nll_BxR, mask_BxR = response_nll(network, embed(network, rows), rows, delta), rows.response_mask_BxT[:, P:]
    harmful, refusal, chats = slice(0, adversarial), slice(adversarial, 2 * adversarial), slice(2 * adversarial, None)
    away = away_loss(nll_BxR[harmful], mask_BxR[harmful], objective)
    toward = toward_loss(nll_BxR[refusal], mask_BxR[refusal], objective)
    nll_B = cross_entropy(nll_BxR, mask_BxR)
    utility = jnp.mean(cross_entropy(nll_BxR[chats], mask_BxR[chats], pooled=objective.cutoff_over == "batch"))
    total = objective.away_weight * away + objective.toward_weight * toward + objective.utility_weight * utility
    metrics = {"loss/total": total, "loss/away": away, "loss/toward": toward, "loss/utility": utility}
    metrics |= {"nll/harmful": jnp.mean(nll_B[harmful]), "nll/refusal": jnp.mean(nll_B[refusal])}
    metrics |= {"attack/gain": jnp.mean(found.nll_before_B) - metrics["nll/harmful"]}  # nats per token by which log p(y) was raised
    return total, metrics


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: the attack's passes over the adversarial rows, then all rows forward and backward."""
    length, how = shape.prompt + shape.response, settings.perturbation
    adversarial = Pass(shape.adversarial, length, shape.response)
    outer = Pass(2 * shape.adversarial + shape.utility, length, shape.response)
    return flops.train_step(model, flops.attack(model, how.steps, how.sites, how.iterate == "best", adversarial), outer, shape.rank)


METHOD = Method(
    name="cat",
    title="CAT",
    paper="continuous adversarial training (arXiv 2405.15589)",
    prompts="requests",
    settings=Settings,
    inner=inner,
    loss=loss,
    flops=step_flops,
    about=lambda settings: f"{settings.perturbation.steps} attack steps",
    terms=(
        Term("loss/away", "Away loss", "lower: harmful response less likely", said=True),
        Term("loss/toward", "Toward loss", "lower: refusal more likely", said=True),
        Term("loss/utility", "Utility loss", "nats per token on benign chats", said=True),
        Term("attack/gain", "Gain of the attack", "nats per token it adds to log p(y)", said=True),
        Term("attack/norm", "Norm of the perturbation", "in mean embedding norms, per token"),
        Term("attack/at_radius", "Tokens at the radius", "share of the perturbed tokens"),
        Term("loss/total", "Total loss", "weighted sum of the three"),
    ),
    color="#d98032",
)
