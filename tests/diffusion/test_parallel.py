"""Fast infilling: Fast-dLLM's recorded runs with and without caches, rules against brute force, and how far from the exact law it is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.diffusion.caching import block_pass, full_pass
from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.diffusion.parallel import FastSettings, accept, infill_fast
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys
from dat_jax.models import transformer

MASK = 510


def keys(count, seed=0):
    return row_keys(jax.random.key(seed), jnp.arange(count))


def recorded(golden):
    folder = golden / "llada_tiny"
    return np.load(folder / "fast_dllm.npz"), json.loads((folder / "fast_dllm_cases.json").read_text())


@pytest.mark.parametrize("threshold", [0.3, 0.15])
def test_fast_dllm_threshold_token_for_token(golden, llada, threshold):
    data, cases = recorded(golden)
    name = f"no_cache.threshold_{threshold}"
    tokens = np.concatenate([data["prompt"], np.full((1, 32), MASK)], axis=1)
    settings = FastSettings(acceptance="threshold", bound=threshold, temperature=0.0, block_length=8)
    done = infill_fast(*llada["mha"], jnp.asarray(tokens), jnp.asarray(tokens == MASK), jnp.ones(tokens.shape, bool), keys(1), settings, 32)
    np.testing.assert_array_equal(done.tokens_BxT, data[f"{name}.output"])
    assert int(done.forwards_B[0]) == cases[name]["nfe"]


@pytest.mark.parametrize("kind", ["prefix_cache", "dual_cache"])
def test_fast_dllm_caches_token_for_token(golden, llada, kind):
    """The reference's loop around our full and block passes: a full pass opens each block of 8, cached ones follow."""
    data, cases = recorded(golden)
    name, (params, config) = f"{kind}.threshold_0.3", llada["mha"]
    tokens, valid, passes = np.concatenate([data["prompt"], np.full((1, 32), MASK)], axis=1), jnp.ones((1, 40), bool), 0
    settings = FastSettings(acceptance="threshold", bound=0.3, temperature=0.0)
    full, part = jax.jit(full_pass, static_argnums=1), jax.jit(block_pass, static_argnums=(1, 5, 6))
    for start in range(8, 40, 8):
        was_cached = False
        h, cache = full(params, config, jnp.asarray(tokens), valid)
        h, end = h[:, start : start + 8], 40 if kind == "prefix_cache" else start + 8
        while True:
            passes += 1
            logits = transformer.head(params, config, h)
            window = tokens[:, start : start + 8]
            taken = np.asarray(accept(logits, jnp.asarray(window == MASK), None, settings))
            window[taken] = np.asarray(jnp.argmax(logits, -1))[taken]
            if was_cached and not (window == MASK).any():  # the reference always runs one cached pass
                break
            h, kept = part(params, config, jnp.asarray(tokens), valid, cache, start, end)
            h, was_cached = h[:, :8], True
            cache = kept if kind == "dual_cache" else cache
    np.testing.assert_array_equal(tokens, data[f"{name}.output"])
    assert passes == cases[name]["nfe"]


def test_rules_against_brute_force():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 9, 7)) * rng.uniform(0.5, 6, size=(6, 9, 1)), jnp.float32)
    eligible = rng.random((6, 9)) < 0.7
    eligible[0] = False
    p = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    entropy, top = -(p * np.log(p)).sum(-1), p.max(-1)
    for rule, bound in (("threshold", 0.6), ("factor", 0.9), ("entropy", 0.5), ("count", 2)):
        found = np.asarray(accept(logits, jnp.asarray(eligible), None, FastSettings(acceptance=rule, bound=bound)))
        for row in range(6):
            places = np.flatnonzero(eligible[row])
            order = sorted(places, key=lambda c: -top[row, c] if rule in ("threshold", "factor") else entropy[row, c])
            taken: list[int] = []
            for rank, place in enumerate(order):
                prefix = entropy[row, order[: rank + 1]]
                fine = {
                    "threshold": top[row, place] >= bound, "factor": top[row, place] >= 1 - bound / (rank + 2),
                    "entropy": prefix.sum() - prefix.max() <= bound, "count": rank < bound,
                }[rule]  # fmt: skip
                if not fine and rank:
                    break
                taken.append(place)
            assert sorted(taken) == list(np.flatnonzero(found[row])), (rule, row)


def test_fast_modes_state_their_distance_from_the_exact_law(tiny_world):
    """Total variation over the 64 fillings; with a random order and bound 0 the entropy rule is the exact sampler."""
    law, rows = tiny_world.law(), 4000
    tokens, masked = (jnp.tile(jnp.asarray(x), (rows, 1)) for x in (tiny_world.tokens_T, tiny_world.masked_T))

    def distance(settings):
        run = infill if isinstance(settings, InfillSettings) else infill_fast
        done = run(tiny_world.params, tiny_world.config, tokens, masked, jnp.ones(tokens.shape, bool), keys(rows), settings, 3)
        counts = np.bincount(np.asarray(done.tokens_BxT)[:, tiny_world.masked_T] @ [16, 4, 1], minlength=64)
        return np.abs(counts / rows - law).sum() / 2, np.asarray(done.forwards_B).mean()

    exact, passes = distance(InfillSettings(steps=3, forbidden=(4,)))
    at_once, _ = distance(InfillSettings(steps=1, forbidden=(4,)))
    assert exact < 0.07 and passes == 3 and at_once > 2 * exact
    bounded = {bound: distance(FastSettings("entropy", bound, order="random", forbidden=(4,))) for bound in (0.0, 0.3, 10.0)}
    assert bounded[0.0][0] < 0.07 and bounded[0.0][1] > 2.9
    assert bounded[0.0][1] > bounded[0.3][1] > bounded[10.0][1] == 1
    assert bounded[10.0][0] == pytest.approx(at_once, abs=0.05)
    for settings in (FastSettings("entropy", 0.3, forbidden=(4,)), FastSettings("threshold", 0.9, forbidden=(4,))):
        far, passes = distance(settings)
        assert far < at_once + 0.1 and 1 < passes <= 3


def test_cached_response_is_exact_at_refresh_one_and_close_otherwise(llada):
    """With one pass per refresh nothing is stale; a stale response moves log-probabilities, not which positions are filled."""
    params, config = llada["mha"]
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 490, (4, 20)))
    masked = jnp.broadcast_to((jnp.arange(20) < 10)[None], (4, 20))
    valid = jnp.ones((4, 20), bool)
    settings = FastSettings("count", 1, temperature=0.0, forbidden=(MASK,))
    exact = infill_fast(params, config, tokens, masked, valid, keys(4), settings, 10)
    stale = infill_fast(params, config, tokens, masked, valid, keys(4), dataclasses.replace(settings, refresh=5), 10, (0, 10))
    assert (np.asarray(stale.tokens_BxT)[:, 10:] == np.asarray(tokens)[:, 10:]).all()
    assert not (np.asarray(stale.tokens_BxT) == MASK).any()
    h, cache = jax.jit(full_pass, static_argnums=1)(params, config, tokens, valid)
    np.testing.assert_allclose(transformer.head(params, config, h), masked_logits(params, config, tokens, valid), atol=2e-5)
    fresh, _ = jax.jit(block_pass, static_argnums=(1, 5, 6))(params, config, tokens, valid, cache, 0, 10)
    np.testing.assert_allclose(fresh, h[:, :10], atol=1e-5)
    assert set(np.asarray(exact.forwards_B)) == {10}


def test_padding_and_batch_do_not_change_a_row(llada):
    params, config = llada["gqa"]
    rng = np.random.default_rng(0)
    row, masked = rng.integers(0, 490, 12), np.isin(np.arange(12), [0, 1, 2, 5, 7])
    settings = FastSettings("entropy", 1.0, temperature=0.7, forbidden=(MASK,))

    def run(left, others):
        shape = (1 + others, left + 12)
        tokens, mask, valid = rng.integers(0, 490, shape), rng.random(shape) < 0.5, np.ones(shape, bool)
        tokens[0, :left], valid[0, :left], mask[0, :left] = 500, False, False
        tokens[0, left:], mask[0, left:] = row, masked
        ids = row_keys(jax.random.key(1), jnp.arange(9, 10 + others))
        done = infill_fast(params, config, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(valid), ids, settings)
        return np.asarray(done.tokens_BxT)[0, left:]

    np.testing.assert_array_equal(run(4, 3), run(0, 0))


@pytest.mark.parametrize("refresh", [1, 3, 99])
@pytest.mark.parametrize("acceptance, bound", [("count", 1), ("entropy", 4.0)])
def test_refilled_slots_give_each_row_what_it_gets_alone(llada, acceptance, bound, refresh):
    """Eleven rows of unequal length through three slots: tokens, likelihoods and passes of a row are those of the row by itself."""
    params, config = llada["gqa"]
    rng = np.random.default_rng(0)
    lengths = np.array([2, 9, 3, 10, 1, 4, 2, 8, 3, 0, 5])
    tokens, masked = rng.integers(0, 490, (11, 18)), np.arange(18)[None] >= 10 - lengths[:, None]
    valid, masked = masked.copy(), masked & (np.arange(18) < 10)
    settings = FastSettings(acceptance, bound, order="random", temperature=0.8, forbidden=(MASK,), refresh=refresh)

    def run(rows, slots=None):
        inputs = (jnp.asarray(x[rows]) for x in (tokens, masked, valid))
        return infill_fast(params, config, *inputs, keys(11)[rows], settings, 10, (0, 10), slots)

    together = run(np.arange(11), 3)
    for row in range(11):
        alone = run(np.array([row]))
        np.testing.assert_array_equal(together.tokens_BxT[row], alone.tokens_BxT[0])
        np.testing.assert_allclose(together.log_prob_BxT[row], alone.log_prob_BxT[0], atol=1e-4)
        assert int(together.forwards_B[row]) == int(alone.forwards_B[0]) == alone.full_passes + alone.block_passes
    made = np.asarray(together.forwards_B)
    passes = int(together.full_passes + together.block_passes)
    batches = sum(made[start : start + 3].max() for start in range(0, 11, 3))
    assert made.sum() / 3 <= passes < batches
    if acceptance == "count":
        np.testing.assert_array_equal(made, lengths)
        assert batches == 9 + 10 + 8 + 5
    if acceptance == "count" and refresh == 1:  # 47 positions; a slot that gets the row of length 0 finds that out in a pass
        assert passes == 18 and together.block_passes == 0


def test_settings_without_meaning_are_named():
    for key, value in (("acceptance", "sure"), ("bound", -1), ("refresh", 0), ("order", "x")):
        with pytest.raises(ValueError, match=rf"sampler\.{key}"):
            FastSettings(**{key: value})
