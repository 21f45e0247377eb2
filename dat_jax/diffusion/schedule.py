"""How many masked positions a denoising step may commit: the quotas of LLaDA, dllm and Dream, per row and in-graph."""

import math

import jax
import jax.numpy as jnp

SCHEDULES = ("even", "rounded", "times")


def block_count(positions: int, block_length: int) -> int:
    """Number of blocks of `block_length` positions (0: one block) that cover `positions` positions."""
    return math.ceil(positions / block_length) if block_length else 1


def quotas(masked_BxN: jax.Array, steps: int, schedule: str = "even", epsilon: float = 1e-3) -> jax.Array:
    """Tokens each row commits at each step: int32 (N * steps, B), the steps of block 0 first.

    masked_BxN counts the masked positions of row b in block n; every block gets `steps` steps. The sum over a block's steps
    is its number of masked positions, so no row keeps a mask and none loses a given token, whatever the other rows hold.
      even     m // steps, the first m % steps steps one more                      (LLaDA generate.py, get_num_transfer_tokens)
      rounded  round-half-even(remaining / steps left), ratio in float32           (dllm, linear schedule)
      times    int(remaining * (1 - s / t)) for t from 1 to `epsilon`, last: all   (Dream; there from the batch mean, here per row)
    """
    if schedule == "even":
        step_Sx1x1 = jnp.arange(steps)[:, None, None]
        quota_SxBxN = masked_BxN[None] // steps + (step_Sx1x1 < masked_BxN[None] % steps)
    elif schedule in ("rounded", "times"):
        times = jnp.linspace(1.0, epsilon, steps + 1, dtype=jnp.float32)
        left = jnp.arange(steps, 0, -1, dtype=jnp.float32)
        share_S = 1.0 / left if schedule == "rounded" else 1.0 - times[1:] / times[:-1]

        def spend(remaining_BxN: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            steps_left, share = step
            if schedule == "rounded":
                quota_BxN = jnp.round(remaining_BxN.astype(jnp.float32) / steps_left)
            else:
                quota_BxN = jnp.floor(remaining_BxN.astype(jnp.float32) * share)
            quota_BxN = jnp.where(steps_left == 1, remaining_BxN, jnp.minimum(quota_BxN.astype(jnp.int32), remaining_BxN))
            return remaining_BxN - quota_BxN, quota_BxN

        _, quota_SxBxN = jax.lax.scan(spend, masked_BxN, (left, share_S))
    else:
        raise ValueError(f"schedule: found {schedule!r}, allowed are {', '.join(SCHEDULES)}")
    return jnp.transpose(quota_SxBxN, (2, 0, 1)).reshape(-1, masked_BxN.shape[0]).astype(jnp.int32)


def most_open(positions: int, steps: int) -> list[int]:
    """Upper bound of the masked positions left before each step of a block of `positions` under the even schedule."""
    committed, bound = 0, []
    for step in range(steps):
        bound.append(max(positions - committed, 1))
        committed += positions // steps + (step < positions % steps)
    return bound
