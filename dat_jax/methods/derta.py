"""Decoupled refusal training (DeRTa, arXiv 2407.09121): refusing from any position of a harmful response.

L = prefix_weight * NLL(refusal | x, the first k tokens of the harmful response), k uniform from 0 to all of them
  + transition_weight * mean over t NLL(first token of the refusal | x, the first t tokens of the harmful response)
  + utility_weight * NLL(benign chat)

The published data has no prefix in a third of its rows, and in others never the whole response (docs/decisions.md).
"""

import dataclasses

import jax
import jax.numpy as jnp

from dat_jax.data.conversations import Conversations
from dat_jax.data.pipeline import Batch
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.settings import check
from dat_jax.training.losses import cross_entropy
from dat_jax.training.network import Network, embed, nll, response_hidden, response_nll


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.derta; the published weights are equal."""

    prefix_weight: float = 1.0
    transition_weight: float = 1.0
    utility_weight: float = 1.0

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {field.name: (getattr(self, field.name) >= 0, "a number >= 0") for field in dataclasses.fields(self)})


def behind_prefixes(batch: Batch, P: int, key: jax.Array) -> Conversations:
    """Returns rows prompt | first k tokens of the harmful response | refusal, of which the refusal is scored; what is too long is cut."""
    away, toward = batch.away, batch.toward
    harmful_BxR, refusal_BxR = away.response_mask_BxT[:, P:], toward.response_mask_BxT[:, P:]
    B, R = harmful_BxR.shape
    k_Bx1 = jax.random.randint(key, (B, 1), 0, jnp.sum(harmful_BxR, axis=1, keepdims=True) + 1)
    position_BxR = jnp.broadcast_to(jnp.arange(R)[None], (B, R))
    from_refusal_BxR = jnp.clip(position_BxR - k_Bx1, 0, R - 1)
    prefix_BxR = position_BxR < k_Bx1
    scored_BxR = ~prefix_BxR & jnp.take_along_axis(refusal_BxR, from_refusal_BxR, axis=1)
    tokens_BxR = jnp.where(prefix_BxR, away.tokens_BxT[:, P:], jnp.take_along_axis(toward.tokens_BxT[:, P:], from_refusal_BxR, axis=1))
    nothing_BxP = jnp.zeros((B, P), bool)
    return Conversations(
        tokens_BxT=jnp.concatenate([away.tokens_BxT[:, :P], tokens_BxR], axis=1),
        prompt_mask_BxT=away.prompt_mask_BxT,
        response_mask_BxT=jnp.concatenate([nothing_BxP, scored_BxR], axis=1),
        valid_BxT=jnp.concatenate([away.valid_BxT[:, :P], prefix_BxR | scored_BxR], axis=1),
    )


def refusing(rows: Conversations, refusals: Conversations, P: int) -> Conversations:
    """Returns the rows with the first token of their refusal at every response position: what is scored there, not what the model reads."""
    first_Bx1 = refusals.tokens_BxT[:, P : P + 1]
    R = rows.tokens_BxT.shape[1] - P
    return rows.replace(tokens_BxT=jnp.concatenate([rows.tokens_BxT[:, :P], jnp.repeat(first_Bx1, R, axis=1)], axis=1))  # type: ignore[attr-defined]


def loss(
    network: Network, reference: None, batch: Batch, found: None, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms."""
    del reference, found
    P = network.prompt_length

    def mean(nll_BxR: jax.Array, rows: Conversations) -> jax.Array:
        return jnp.mean(cross_entropy(nll_BxR, rows.response_mask_BxT[:, P:]))

    behind = behind_prefixes(batch, P, key)
    prefix = mean(response_nll(network, embed(network, behind), behind), behind)
    h_BxRxD = response_hidden(network, embed(network, batch.away), batch.away)
    transition = mean(nll(network, h_BxRxD, refusing(batch.away, batch.toward, P)), batch.away)
    utility = mean(response_nll(network, embed(network, batch.utility), batch.utility), batch.utility)
    total = settings.prefix_weight * prefix + settings.transition_weight * transition + settings.utility_weight * utility
    return total, {"loss/total": total, "loss/prefix": prefix, "loss/transition": transition, "loss/utility": utility}


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: two kinds of adversarial rows and the utility rows, forward and backward."""
    del settings
    outer = Pass(2 * shape.adversarial + shape.utility, shape.prompt + shape.response, shape.response)
    return {"defence": flops.train_step(model, 0.0, outer, shape.rank)["defence"]}


METHOD = Method(
    name="derta",
    title="DeRTa",
    paper="decoupled refusal training (arXiv 2407.09121)",
    prompts="requests",
    settings=Settings,
    loss=loss,
    flops=step_flops,
    terms=(
        Term("loss/prefix", "Refusal behind a prefix", "nats per token", said=True),
        Term("loss/transition", "Transition to refusal", "nats per position of the harmful response", said=True),
        Term("loss/utility", "Utility loss", "nats per token on benign chats", said=True),
    ),
)
