"""The sampler's passes over rows of prompts: tokens, bounds on their likelihood, and what the passes cost."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax import sharding
from dat_jax.diffusion import mending
from dat_jax.diffusion.denoiser import forward_flops
from dat_jax.diffusion.layout import Rows
from dat_jax.diffusion.likelihood import log_likelihood
from dat_jax.diffusion.parallel import infill_fast
from dat_jax.diffusion.sampler import infill
from dat_jax.models import splash
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

if TYPE_CHECKING:
    from dat_jax.diffusion.pool import Pool


def padded_block(pool: Pool, block: int, config: ModelConfig) -> int:
    """The prompt block's length with padding in front, where the attention kernel wants rows of a multiple of its blocks."""
    return block + (-(block + pool.response_tokens) % splash.BLOCK if config.attention == "splash" else 0)


def passes_cost(pool: Pool, config: ModelConfig, block: int, rows: int, full: int, alone: int, scored: int) -> dict[str, float]:
    """Forward passes of batches of `rows`, operations and positions of all their rows.

    `full` denoising passes run whole rows, `alone` the prompt's block; `scored` batches had their likelihood estimated.
    """
    length, high = block + pool.response_tokens, pool.prompt_tokens[1]
    steps = pool.settings(()).steps
    head = high  # but where the order is random and the number known, the head runs at what is committed
    if pool.remasking == "random" and pool.acceptance in ("quota", "count"):
        head = -(-high // steps) if pool.acceptance == "quota" else min(high, max(int(pool.bound), 1))
    branches, draws = 2 if pool.cfg_scale else 1, scored * pool.likelihood_samples
    flops = full * branches * forward_flops(config, length, head) + draws * forward_flops(config, length, high)
    flops += alone * forward_flops(config, block, head, keys=length)
    positions = (full * branches + draws) * length + alone * block
    return {
        "forward_passes": float(full * branches + alone + draws),
        "flops": float(rows * flops),
        "positions": float(rows * positions),
    }


def sample_rows(
    pool: Pool, sampler: Model, rows: Rows, keys_N: jax.Array, forbidden: tuple[int, ...], block: int
) -> tuple[np.ndarray, np.ndarray | None, dict[str, float]]:
    """Infilled tokens, the bound on log p(prompt | response) (None when it is not asked for), and what the passes cost."""
    model, span = (sampler.params, sampler.config), pool.prompt_tokens[1]
    count, size = len(rows.tokens_BxT), min(pool.batch_size, len(rows.tokens_BxT))
    # One shape, one compilation: the last batch repeats its last row, and the repetitions are dropped.
    batches = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]

    def inputs(tokens_NxT: np.ndarray, index: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        tokens_BxT, mask_BxT, valid_BxT = (jnp.asarray(x[index]) for x in (tokens_NxT, rows.prompt_mask_BxT, rows.valid_BxT))
        return tokens_BxT, mask_BxT, valid_BxT, keys_N[index]

    if pool.acceptance == "quota":
        # Not refilled: all rows of `infill` are at the same step, which its references' schedules, recorded noise and the shrinking number
        # of candidates hang on. A batch ends with its longest row, so batches of like lengths waste little.
        done = [infill(*model, *inputs(rows.tokens_BxT, index), pool.settings(forbidden), span) for index in batches]
        full, alone = sum(int(np.max(sharding.on_host(batch.forwards_B))) for batch in done), 0
    else:
        done = [infill_fast(*model, *inputs(rows.tokens_BxT, np.arange(count)), pool.fast_settings(forbidden), span, (0, block), size)]
        full, alone = int(sharding.on_host(done[0].full_passes)), int(sharding.on_host(done[0].block_passes))
    tokens_NxT, bound_N = np.concatenate([sharding.on_host(batch.tokens_BxT) for batch in done])[:count], None
    if pool.mend:
        few = dataclasses.replace(pool.settings(forbidden), steps=mending.STEPS)

        def fill(*batch: jax.Array) -> tuple[np.ndarray, np.ndarray]:
            found = infill(*model, *batch, few, span)
            return sharding.on_host(found.tokens_BxT), sharding.on_host(found.forwards_B)

        tokens_NxT, more = mending.mended(fill, tokens_NxT, rows.prompt_mask_BxT, rows.valid_BxT, keys_N, pool.mend, size)
        full += more
    if pool.likelihood_samples:
        score = partial(log_likelihood, *model, draws=pool.likelihood_samples, scheme=pool.likelihood_scheme, span=span)
        scores = [sharding.on_host(score(*inputs(tokens_NxT, index))) for index in batches]
        bound_N = np.concatenate(scores)[:count]
    return tokens_NxT, bound_N, passes_cost(pool, sampler.config, block, size, full, alone, len(batches))
