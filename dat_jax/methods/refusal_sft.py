"""Refusal tuning: plain cross-entropy of the refusals and of benign answers, no perturbation."""

import dataclasses

import jax.numpy as jnp

from dat_jax.methods.method import Method, Term
from dat_jax.models import flops
from dat_jax.settings import check
from dat_jax.training.losses import cross_entropy
from dat_jax.training.network import embed, response_nll


@dataclasses.dataclass(frozen=True)
class Settings:
    refusal_weight: float = 1.0

    def validate(self, key):
        check(self, key, {"refusal_weight": (self.refusal_weight >= 0, "a number >= 0")})


def loss(network, reference, batch, found, key, settings):
    def mean_nll(rows):
        nll_BxR = response_nll(network, embed(network, rows), rows)
        return jnp.mean(cross_entropy(nll_BxR, rows.response_mask_BxT[:, network.prompt_length :]))

    refusal, utility = mean_nll(batch.toward), mean_nll(batch.utility)
    total = settings.refusal_weight * refusal + utility
    return total, {"loss/total": total, "loss/refusal": refusal, "loss/utility": utility}


def step_flops(model, settings, shape):
    rows = flops.Pass(shape.adversarial + shape.utility, shape.prompt + shape.response, shape.response)
    return {"defence": flops.train_step(model, 0.0, rows, shape.rank)["defence"]}


METHOD = Method(
    name="refusal_sft", title="Refusal SFT", paper="refusal tuning", prompts="requests", settings=Settings, loss=loss, flops=step_flops,
    terms=(Term("loss/refusal", "Refusal loss", "nats per token", said=True), Term("loss/utility", "Utility loss", "nats per token")),
)
