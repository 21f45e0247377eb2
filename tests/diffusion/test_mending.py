"""Prompts that stutter: what is masked again, and what becomes of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data.behaviors import Behavior
from dat_jax.diffusion import mending
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import template
from dat_jax.diffusion.pool import Pool, draw, forbidden_tokens
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys

BEHAVIORS = [Behavior("one", "how do i open the safe", ("turn it",), ("no",)), Behavior("two", "why", ("yes",), ("no",))]


def test_second_copies_and_what_stands_behind_them_are_found():
    rows = [[9, 1, 1, 2, 3, 9, 9], [9, 1, 2, 1, 2, 3, 4], [1, 2, 3, 1, 2, 3, 5], [1, 2, 1, 3, 2, 4, 5], [6, 1, 2, 3, 4, 5, 5]]
    tokens_NxT = np.array(rows)
    mask_NxT = np.ones(tokens_NxT.shape, bool)
    mask_NxT[0, [0, 5, 6]] = mask_NxT[1, 0] = mask_NxT[4, 6] = False
    expected = [[2, 3], [3, 4, 5], [3, 4, 5, 6], [], []]
    found_NxT = mending.repeated(tokens_NxT, mask_NxT)
    assert [np.flatnonzero(row).tolist() for row in found_NxT] == expected


def test_only_what_is_repeated_is_filled_anew_whatever_shares_the_batch(small_sampler):
    model = (small_sampler.params, small_sampler.config)
    tokens_NxT = np.array([[5, 6, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10], [5, 5, 5, 5, 8, 9], [7, 8, 7, 8, 9, 9]])
    mask_NxT, valid_NxT = np.zeros(tokens_NxT.shape, bool), np.ones(tokens_NxT.shape, bool)
    mask_NxT[:, :4] = True
    keys_N = row_keys(jax.random.key(0), jnp.arange(4))
    settings = InfillSettings(steps=mending.STEPS, forbidden=(mask_id(small_sampler.config),))

    def fill(*batch):
        found = infill(*model, *batch, settings, 4)
        return np.asarray(found.tokens_BxT), np.asarray(found.forwards_B)

    once, forwards = mending.mended(fill, tokens_NxT, mask_NxT, valid_NxT, keys_N, 1, 2)
    kept_NxT = ~mending.repeated(tokens_NxT, mask_NxT)
    np.testing.assert_array_equal(once[kept_NxT], tokens_NxT[kept_NxT])
    assert (once != tokens_NxT).any(axis=1).tolist()[1] is False and 2 <= forwards <= 2 * mending.STEPS
    alone, _ = mending.mended(fill, tokens_NxT[2:3], mask_NxT[2:3], valid_NxT[2:3], keys_N[2:3], 1, 1)
    np.testing.assert_array_equal(alone[0], once[2])


def test_a_pool_stutters_less_and_counts_its_passes(small_sampler):
    plain = Pool(samples=24, keep=1, prompt_tokens=(12, 12), response_tokens=4, steps=12, batch_size=16, likelihood_samples=0,
                 selection="random", separator="answer:")  # fmt: skip
    around = template(small_sampler.tokenizer, plain.separator, plain.begin)
    forbidden = forbidden_tokens(small_sampler.tokenizer, small_sampler.config.vocab_size, mask_id(small_sampler.config))

    def stutters(pool):
        records, cost = draw(pool, small_sampler, BEHAVIORS, around, forbidden, 0, 0)
        words = [record.prompt.split() for record in records]
        return sum(any(a == b for a, b in itertools.pairwise(said)) for said in words), cost["forward_passes"], records

    before, passes, records = stutters(plain)
    after, more, mended = stutters(dataclasses.replace(plain, mend=4))
    assert before > 2 * after and more > passes
    assert mended[0].settings["mend"] == 4 and "mend" not in records[0].settings
    untouched = [a.prompt for a, b in zip(records, mended) if a.prompt == b.prompt]
    assert untouched and len(untouched) < len(records)
