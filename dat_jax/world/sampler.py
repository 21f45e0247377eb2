"""The embedded world's sampler: a small LLaDA that learns prompts and responses jointly, in all forms but the held-out ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from transformers import PreTrainedTokenizerFast

from dat_jax.diffusion import layout, learning
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import fit

SEPARATOR = "\nAnswer: "
PROMPT_TOKENS = 11  # of the longest prompt
RESPONSE_LENGTH = 10  # tokens of an answer with the token that ends it


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """Sizes and schedule of the sampler (config.world.sampler)."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 256
    batch: int = 128
    steps: int = 280
    learning_rate: float = 8e-3
    prompt_only: float = 0.75  # share of the rows that mask the prompt alone


def train(
    seed: int,
    pairs: Sequence[tuple[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    settings: SamplerSettings,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], ModelConfig]:
    """Train on (prompt, response) pairs with the 1/t-weighted masked loss; return the parameters and their ModelConfig."""
    config = ModelConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        mlp_width=settings.mlp_width,
        model_type="llada",
        causal=False,
        mask_token=tokenizer.mask_token_id,
        max_length=128,
        remat=False,
    )
    template = layout.template(tokenizer, SEPARATOR, begin=True)
    rows, _ = learning.pair_rows(tokenizer, template, pairs, PROMPT_TOKENS, RESPONSE_LENGTH)

    def loss(params: dict[str, Any], batch: layout.Rows, key: jax.Array) -> jax.Array:
        return learning.masked_loss(params, config, batch, key, settings.prompt_only)

    key = jax.random.key(seed)
    params = fit(
        loss,
        weights.initialize(jax.random.fold_in(key, 2), config),
        learning.batches(rows, settings.batch, seed),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        key=key,
        report=report,
        label="sampler, pretraining",
        optimizer="muon",
    )
    return params, config
