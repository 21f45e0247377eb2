"""What a masked-diffusion LM predicts at chosen positions, with classifier-free guidance, and what a forward pass costs.

B batch, T positions, C positions the head runs at, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig

Params = Any


def mask_id(config: ModelConfig) -> int:
    """The mask token of a masked-diffusion LM; ValueError when the model is none."""
    if config.mask_token is None or config.causal:
        found = f"mask_token={config.mask_token}, causal={config.causal}"
        raise ValueError(f"config.sampler.model: {config.model_type!r} is not a masked-diffusion LM ({found}); allowed: LLaDA, Dream")
    return config.mask_token


def hidden_at(
    params: Params, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, positions_BxC: jax.Array | None,
    open_TxT: jax.Array | None = None,
) -> jax.Array:
    """Final hidden states that predict the tokens AT `positions_BxC` (None: at every position): (B, C, D).

    Dream reads the prediction of position i at position i - 1 (`config.logit_shift`), so its position 0 is not usable: keep a BOS there.
    open_TxT: see `models.attention.attend`.
    """
    h_BxTxD = transformer.hidden(params, config, transformer.embed(params, config, tokens_BxT), valid_BxT, open_TxT=open_TxT)
    if positions_BxC is None:
        return jnp.concatenate([h_BxTxD[:, :1], h_BxTxD[:, :-1]], axis=1) if config.logit_shift else h_BxTxD
    source_BxC = jnp.maximum(positions_BxC - 1, 0) if config.logit_shift else positions_BxC
    return jnp.take_along_axis(h_BxTxD, source_BxC[..., None], axis=1)


def masked_logits(
    params: Params, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, positions_BxC: jax.Array | None = None
) -> jax.Array:
    """Float32 logits (B, C, V) of the tokens at `positions_BxC`; the head runs at those positions only."""
    return transformer.head(params, config, hidden_at(params, config, tokens_BxT, valid_BxT, positions_BxC))


def guided_logits(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    valid_BxT: jax.Array,
    given_BxT: jax.Array,
    positions_BxC: jax.Array | None,
    scale: float,
) -> jax.Array:
    """Logits U + (scale + 1)(L - U), where U does not see the tokens given at the start (LLaDA generate.py, cfg_scale).

    Both branches are one forward of 2B rows; scale 0 is `masked_logits`.
    """
    if scale == 0.0:
        return masked_logits(params, config, tokens_BxT, valid_BxT, positions_BxC)
    blind_BxT = jnp.where(given_BxT, mask_id(config), tokens_BxT)
    positions = None if positions_BxC is None else jnp.concatenate([positions_BxC, positions_BxC])
    both = masked_logits(params, config, jnp.concatenate([tokens_BxT, blind_BxT]), jnp.concatenate([valid_BxT, valid_BxT]), positions)
    seen_BxCxV, blind_BxCxV = jnp.split(both, 2)
    return blind_BxCxV + (scale + 1.0) * (seen_BxCxV - blind_BxCxV)


def forward_flops(config: ModelConfig, positions: int, head_positions: int, keys: int = 0) -> float:
    """Operations of one row's forward: 2 per weight and position, 4 H K per layer, position and key, and the head where it runs.

    `keys` is what each position attends to when that is more than the positions that run (a cache); 0: these positions.
    """
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    weights = config.layers * (attention + 3 * config.width * config.mlp_width)
    scores = 4 * (keys or positions) * config.heads * config.head_dim * config.layers
    return float(positions * (2 * weights + scores) + 2 * head_positions * config.width * config.vocab_size)
