"""Prompts that stutter are mended: tokens that stand twice in a row are masked again, with the one behind them, and filled anew."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LONGEST = 3  # tokens that are said twice: most repeated words have no more
STEPS = 4  # denoising steps of a pass; few tokens are masked in it
FIRST_PASS = 1_000_000  # folded into a row's key, apart from all that denoising folds in

# (tokens of some rows, mask, valid, keys) as jax arrays -> filled tokens and forward passes of each row; see `sampler.infill`
Fill = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[np.ndarray, np.ndarray]]


def repeated(tokens_NxT: np.ndarray, prompt_mask_NxT: np.ndarray) -> np.ndarray:
    """Returns which prompt tokens are the second copy of up to three tokens that stand twice in a row, or stand behind one; NxT bool."""
    found_NxT = np.zeros_like(prompt_mask_NxT)
    for period in range(1, LONGEST + 1):
        same_NxT = np.zeros_like(prompt_mask_NxT)
        same_NxT[:, period:] = tokens_NxT[:, period:] == tokens_NxT[:, :-period]
        same_NxT[:, period:] &= prompt_mask_NxT[:, period:] & prompt_mask_NxT[:, :-period]
        for row, end in np.argwhere(same_NxT):
            if same_NxT[row, end - period + 1 : end + 1].all() and end >= 2 * period - 1:
                found_NxT[row, end - period + 1 : end + 2] = True
    return found_NxT & prompt_mask_NxT


def mended(
    fill: Fill, tokens_NxT: np.ndarray, prompt_mask_NxT: np.ndarray, valid_NxT: np.ndarray, keys_N: jax.Array, passes: int, size: int
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Returns the tokens after so many passes, and how many forward passes of `size` rows that took; rows without a repetition stay.

    With `STEPS` marked tokens or fewer, in random order and at temperature 1, a pass is a step of Gibbs sampling on them: it draws from the
    model's own conditional law. With more of them, two or more are drawn at once. What is marked depends on the tokens, so the prompts as a
    whole are not from the model's law.
    """
    tokens_NxT, forwards = tokens_NxT.copy(), 0
    for number in range(passes):
        marked_NxT = repeated(tokens_NxT, prompt_mask_NxT)
        rows = np.flatnonzero(marked_NxT.any(axis=1))
        for start in range(0, len(rows), size):
            batch = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]  # one shape: the last batch repeats its last row
            tokens_BxT, mask_BxT, valid_BxT = (jnp.asarray(x[batch]) for x in (tokens_NxT, marked_NxT, valid_NxT))
            found, passed = fill(tokens_BxT, mask_BxT, valid_BxT, _of_pass(keys_N[batch], number))
            tokens_NxT[batch], forwards = found, forwards + int(np.max(passed))
    return tokens_NxT, forwards


def _of_pass(keys_B: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, FIRST_PASS + number))(keys_B)
