"""Continuous adversarial training (CAT, arXiv 2405.15589; C-AdvUL in Continuous-AdvTrain): away, toward and utility loss under attack.

delta* = argmax_{||delta_t|| <= eps mean||E||}  log p(harmful response | x + delta)                                       eq. 4
L = away_weight * A(y | x + delta*) + toward_weight * T(refusal | x + delta*) + utility_weight * NLL(benign chat)         eq. 5

With `held` a share of the benign prompts is perturbed too, so that their answers become unlikely, and the answers are learned under that:
what is harmless is to stay answered in the neighbourhood of its prompt, as what is harmful is to stay refused. This is not in the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data.conversations import Conversations
from dat_jax.data.pipeline import Batch
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.transformer import Delta
from dat_jax.settings import check
from dat_jax.training.losses import Objective, away_loss, cross_entropy, toward_loss
from dat_jax.training.network import Found, Network, embed, example_mean, kl, nll, response_hidden, response_nll
from dat_jax.training.perturbation import Perturbation, operations, perturb


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.cat, which DAT shares."""

    perturbation: Perturbation = dataclasses.field(default_factory=Perturbation)
    perturbed: float = 1.0  # share of the adversarial rows that is perturbed in a step; the others are trained on as they are
    held: float = 0.0  # share of the utility rows that is perturbed by `holding`
    holding: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=2, step_size=0.6))
    objective: Objective = dataclasses.field(default_factory=Objective)

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"perturbed": (0 < self.perturbed <= 1, "a share > 0 and <= 1"), "held": (0 <= self.held <= 1, "a share, 0 to 1")})


def chosen(rows: int, share: float) -> np.ndarray:
    """The numbers of the rows that are perturbed, spread evenly over the batch so that every device has some; at least one."""
    count = max(1, round(rows * share))
    return np.arange(count) * rows // count


def inner(network: Network, batch: Batch, key: jax.Array, settings: Settings) -> Found:
    """Perturbs the prompts, all or a share, so that the harmful responses become likely.

    With `held` a share of the benign prompts is perturbed too, so that their answers become unlikely.
    """
    found = of_share(network, batch.away, settings.perturbed, settings.perturbation, key)
    if not settings.held:
        return found
    held = of_share(network, batch.utility, settings.held, settings.holding, jax.random.fold_in(key, 1), against=True)
    return found.replace(held=held.delta)  # type: ignore[attr-defined]


def of_share(network: Network, rows: Conversations, share: float, how: Perturbation, key: jax.Array, against: bool = False) -> Found:
    """Perturbs a share of the rows, zero for the others; against: so that their responses become unlikely."""
    B = rows.tokens_BxT.shape[0]
    which = chosen(B, share)
    part = rows if share == 1 else jax.tree.map(lambda x: x[which], rows)

    def unlikely(network: Network, delta: Delta) -> jax.Array:
        return -example_mean(response_nll(network, embed(network, part), part, delta), part, network.prompt_length)

    found = perturb(network, part, how, key, adversary=unlikely if against else None)
    if share == 1:
        return found
    delta = {site: jnp.zeros((B, *part.shape[1:]), part.dtype).at[which].set(part) for site, part in found.delta.items()}
    return found.replace(delta=delta)  # type: ignore[attr-defined]


def loss(
    network: Network, reference: Network | None, batch: Batch, found: Found, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms; away, toward and utility rows go through one forward pass.

    The refusal is learned under the perturbation that made the harmful response likely; utility rows are perturbed where `held` says so.
    reference: the model before training, there where the utility loss is the divergence from it.
    """
    del key
    objective, P = settings.objective, network.prompt_length
    rows = jax.tree.map(lambda *blocks: jnp.concatenate(blocks), batch.away, batch.toward, batch.utility)
    adversarial, benign = batch.away.tokens_BxT.shape[0], batch.utility.tokens_BxT.shape[0]
    held, shape = found.held or {}, (P, network.config.width)
    delta = {}
    for site in sorted({*found.delta, *held}):
        delta_BxPxD = found.delta.get(site, jnp.zeros((adversarial, *shape), jnp.float32))
        delta[site] = jnp.concatenate([delta_BxPxD, delta_BxPxD, held.get(site, jnp.zeros((benign, *shape), jnp.float32))])
    h_BxRxD = response_hidden(network, embed(network, rows), rows, delta)
    nll_BxR, mask_BxR = nll(network, h_BxRxD, rows), rows.response_mask_BxT[:, P:]
    harmful, refusal, chats = slice(0, adversarial), slice(adversarial, 2 * adversarial), slice(2 * adversarial, None)
    away = away_loss(nll_BxR[harmful], mask_BxR[harmful], objective)
    toward = toward_loss(nll_BxR[refusal], mask_BxR[refusal], objective)
    nll_B = cross_entropy(nll_BxR, mask_BxR)
    held_BxR = nll_BxR[chats]
    if reference is not None:
        held_BxR = kl(network, reference, h_BxRxD[chats], batch.utility, reverse=objective.retention == "reverse_kl")
    utility = jnp.mean(cross_entropy(held_BxR, mask_BxR[chats], pooled=objective.cutoff_over == "batch"))
    total, metrics = summed(objective, away, toward, utility, nll_B[harmful], nll_B[refusal])
    if settings.held:
        metrics |= {"nll/held": jnp.mean(nll_B[chats][chosen(benign, settings.held)])}
    attacked_B = nll_B[harmful][chosen(adversarial, settings.perturbed)]
    metrics |= {"attack/gain": jnp.mean(found.nll_before_B) - jnp.mean(attacked_B)}  # nats per token by which log p(y) was raised
    return total, metrics


def summed(
    objective: Objective, away: jax.Array, toward: jax.Array, utility: jax.Array, harmful_B: jax.Array, refusal_B: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted sum of the three losses, and the metrics of it; harmful_B, refusal_B: nats per token of each row."""
    total = objective.away_weight * away + objective.toward_weight * toward + objective.utility_weight * utility
    metrics = {"loss/total": total, "loss/away": away, "loss/toward": toward, "loss/utility": utility}
    return total, metrics | {"nll/harmful": jnp.mean(harmful_B), "nll/refusal": jnp.mean(refusal_B)}


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: the attack's passes over the adversarial rows, then all rows forward and backward."""
    length, how = shape.prompt + shape.response, settings.perturbation
    adversarial = Pass(len(chosen(shape.adversarial, settings.perturbed)), length, shape.response)
    inner = operations(model, how, adversarial)
    if settings.held:
        inner += operations(model, settings.holding, Pass(len(chosen(shape.utility, settings.held)), length, shape.response))
    return update_flops(model, settings.objective, inner, shape)


def update_flops(model: ModelConfig, objective: Objective, inner: float, shape: StepShape) -> dict[str, float]:
    """Operations of a step whose inner maximisation takes `inner` and whose loss is `loss`, for one update of the weights."""
    length = shape.prompt + shape.response
    found = flops.train_step(model, inner, Pass(2 * shape.adversarial + shape.utility, length, shape.response), shape.rank)
    if objective.compares:  # the model before training, on the utility rows
        found["defence"] += flops.forward(model, Pass(shape.utility, length, shape.response))
    return found


LOSS_TERMS = (
    Term("loss/away", "Away loss", "lower: harmful response less likely", said=True),
    Term("loss/toward", "Toward loss", "lower: refusal more likely", said=True),
    Term("loss/utility", "Utility loss", "nats per token on benign chats: of the answer, or KL", said=True),
    Term("attack/gain", "Gain of the attack", "nats per token it adds to log p(y)", said=True),
)
METHOD = Method(
    name="cat",
    title="CAT",
    paper="continuous adversarial training (arXiv 2405.15589)",
    prompts="requests",
    settings=Settings,
    inner=inner,
    loss=loss,
    flops=step_flops,
    needs_reference=lambda settings: settings.objective.compares,
    about=lambda settings: f"{settings.perturbation.steps} attack steps",
    terms=(
        *LOSS_TERMS,
        Term("attack/norm", "Norm of the perturbation", "in mean embedding norms, per token"),
        Term("attack/at_radius", "Tokens at the radius", "share of the perturbed tokens"),
        Term("loss/total", "Total loss", "weighted sum of the three"),
    ),
    color="#d98032",
)
