"""Attacks on the prompt's embeddings, alone and on top of a rewrite.

Nobody can send embeddings through a chat window: this attack stands for everything that the discrete attacks do not find, and bounds
what a stronger search might. It is the training's own inner maximisation with settings of the evaluation's own (steps, radius), so that a
model is not measured by the very attack it was trained on alone. The target is the behavior's harmful response; the answer is then decoded
greedily from the perturbed embeddings and judged like any other. The target itself is never shown to the judge.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dat_jax.data.conversations import Conversations
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig
from dat_jax.training import perturbation
from dat_jax.training.perturbation import Attack


def perturbed_prompts(params: Any, config: ModelConfig, batch: Conversations, attack: Attack, prompt_length: int) -> jax.Array:
    """Embeddings e_BxPxD float32 of the prompts plus the perturbation that makes the responses likely; clean outside `prompt_mask`."""
    delta_BxPxD, _ = perturbation.perturb(params, config, batch, attack, prompt_length)
    tokens_BxP = jnp.asarray(batch.tokens_BxT[:, :prompt_length])
    return perturbation.add(transformer.embed(params, config, tokens_BxP), delta_BxPxD)
