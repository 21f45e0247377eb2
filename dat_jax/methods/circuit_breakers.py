"""Circuit breakers (representation rerouting, arXiv 2406.04313): harmful exchanges lose their representation, benign ones keep theirs.

There is no attack in training. h is the model's residual stream, h' that of the model before training. s grows from 0 at the first step,
and would be 1 after `schedule` trainings:

    L = alpha * s * mean ||h - h'||_2             over benign rows and all layers
      + alpha * (1 - s) * mean relu(cos(h, h'))   over harmful rows and `layers`

Means are over the rows' tokens that are no padding. Reference: `lorra_circuit_breaker.py`, whose hidden_states[k] is the stream before
layer k, and behind the final norm where k is the number of layers: here it is the stream before that norm. Its schedule runs over twice the
training's steps. It trains adapters up to the last of `layers`; here all are trained.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dat_jax.data.pipeline import Batch
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.settings import check
from dat_jax.training.network import Network, embed
from dat_jax.training.perturbation import possible_sites


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.circuit_breakers; defaults for Llama-3-8B-Instruct (Mistral-7B: alpha 5)."""

    layers: tuple[int, ...] = (10, 20)  # k: the residual stream before layer k
    alpha: float = 10.0
    schedule: float = 2.0  # lengths of the training over which the weight moves from harmful to benign rows

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {"layers": (possible_sites(self.layers), "one or more integers >= 0, each once: k is the stream before layer k")}
        check(self, key, rules | {"alpha": (self.alpha >= 0, "a number >= 0"), "schedule": (self.schedule >= 1, "a number >= 1")})

    def fits(self, key: str, model: ModelConfig) -> None:
        """Raises ValueError naming the key and the layer that a model does not have."""
        transformer.check_sites(model, self.layers, key=f"config.{key}.layers")


def streams(network: Network, rows, sites: tuple[int, ...]) -> list[jax.Array]:
    """The residual stream before each of these layers, BxTxD float32."""
    e_BxTxD = embed(network, rows)
    _, found = transformer.hidden(network.params, network.config, e_BxTxD, rows.valid_BxT, lora=network.lora, taps=sites)
    return [found[site].astype(jnp.float32) for site in sites]


def loss(
    network: Network, reference: Network, batch: Batch, found: None, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms."""
    del found, key

    def pairs(rows, sites):
        before = [jax.lax.stop_gradient(h_BxTxD) for h_BxTxD in streams(reference, rows, sites)]
        return zip(streams(network, rows, sites), before)

    def mean(values_BxT, rows):
        return jnp.sum(jnp.where(rows.valid_BxT, values_BxT, 0.0)) / jnp.maximum(jnp.sum(rows.valid_BxT), 1)

    def cosine(a_BxTxD, b_BxTxD):
        return jnp.sum(a_BxTxD * b_BxTxD, -1) / jnp.maximum(length(a_BxTxD) * length(b_BxTxD), 1e-12)

    every = tuple(range(network.config.layers + 1))
    cosines = [mean(jax.nn.relu(cosine(h, before)), batch.away) for h, before in pairs(batch.away, settings.layers)]
    distances = [mean(length(h - before), batch.utility) for h, before in pairs(batch.utility, every)]
    broken, retained = jnp.mean(jnp.stack(cosines)), jnp.mean(jnp.stack(distances))
    done = network.progress / settings.schedule
    total = settings.alpha * (done * retained + (1 - done) * broken)
    return total, {"loss/total": total, "loss/reroute": broken, "loss/retain": retained}


def length(x_BxTxD: jax.Array) -> jax.Array:
    """The L2 norm of each token's vector, with a gradient of zero where the vector is zero, as it is at the first step."""
    square_BxT = jnp.sum(x_BxTxD**2, -1)
    return jnp.where(square_BxT > 0, jnp.sqrt(jnp.where(square_BxT > 0, square_BxT, 1.0)), 0.0)


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: benign rows forward and backward through all layers, harmful ones up to the last of `layers`; no head.

    The same passes once more, forward alone, in the model before training.
    """
    tokens = shape.prompt + shape.response
    passes = [(model, Pass(shape.utility, tokens, 0))]
    if last := max(settings.layers):  # the embeddings alone take no product
        passes.append((flops.part(model, 0, last), Pass(shape.adversarial, tokens, 0)))
    return {"defence": sum(flops.train_step(part, 0.0, rows, shape.rank)["defence"] + flops.forward(part, rows) for part, rows in passes)}


METHOD = Method(
    name="circuit_breakers",
    title="Circuit breakers",
    paper="representation rerouting (arXiv 2406.04313)",
    prompts="requests",
    settings=Settings,
    loss=loss,
    flops=step_flops,
    needs_reference=lambda settings: True,
    about=lambda settings: f"layers {', '.join(map(str, settings.layers))}",
    terms=(
        Term("loss/reroute", "Rerouting loss", "cosine to the representation before training, harmful rows", said=True),
        Term("loss/retain", "Retaining loss", "distance from the representation before training, benign rows", said=True),
    ),
)
DISTRIBUTIONAL = dataclasses.replace(
    METHOD,
    name="dat_circuit_breakers",
    title="DAT + circuit breakers",
    paper="circuit breakers on the prompts of DAT",
    prompts="sampled",
    group="circuit_breakers",
)
