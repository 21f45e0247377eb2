"""The Monte-Carlo bound against the reference's recorded draws, the closed form over all orders, and plain Monte Carlo."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.diffusion.likelihood import bound_draws, draw_counts, log_likelihood, masked_log_prob, reference_counts
from dat_jax.diffusion.sampler import row_keys

MASK = 510


@pytest.mark.parametrize("name", ["ll", "ll_cfg_0.5", "ll_single_token"])
def test_recorded_draws_have_the_recorded_counts_and_losses(golden, llada, name):
    data = np.load(golden / "llada_tiny" / "log_likelihood.npz")
    case = json.loads((golden / "llada_tiny" / "log_likelihood_cases.json").read_text())[name]
    params, config = llada["mha"]
    prompt, answer = data[f"{name}.prompt"], data[f"{name}.answer"]
    _, size, length = data[f"{name}.noisy"].shape
    row = jnp.asarray(np.concatenate([prompt, answer]))
    target = jnp.arange(length) >= len(prompt)
    losses = []
    for noisy in data[f"{name}.noisy"]:
        masked = noisy == MASK
        counts = masked.sum(axis=1)
        # The counts are one of the L possible stratified sets.
        possible = [reference_counts(jnp.array([k]), jnp.array([len(answer)]), size)[:, 0] for k in range(1, len(answer) + 1)]
        assert any(sorted(np.asarray(p)) == sorted(counts) for p in possible)
        tiled = [jnp.broadcast_to(x[None], (size, length)) for x in (row, target, jnp.ones(length, bool))]
        losses.append(-masked_log_prob(params, config, tiled[0], jnp.asarray(masked), tiled[1], tiled[2], case["cfg_scale"]))
    np.testing.assert_allclose(losses, data[f"{name}.per_sample_loss"], rtol=2e-5, atol=1e-4)
    assert -np.mean(losses) == pytest.approx(case["log_likelihood"], abs=1e-3)


def test_estimate_is_unbiased_for_the_mean_over_all_orders(golden, llada):
    """Closed form: 3! chain-rule log-probabilities recorded in float64; all masked sets of a size enumerated give their mean exactly."""
    data = np.load(golden / "llada_tiny" / "log_likelihood.npz")
    exact = data["exact3.per_order_log_likelihood"].mean()
    params, config = llada["mha"]
    prompt, answer = data["exact3.prompt"], data["exact3.answer"]
    row, start = np.concatenate([prompt, answer]), len(prompt)
    sets = [chosen for size in (1, 2, 3) for chosen in itertools.combinations(range(3), size)]
    masked = np.zeros((len(sets), len(row)), bool)
    for index, chosen in enumerate(sets):
        masked[index, start + np.array(chosen)] = True
    tokens = jnp.tile(jnp.asarray(row), (len(sets), 1))
    target, valid = jnp.broadcast_to(jnp.arange(len(row))[None] >= start, masked.shape), jnp.ones(masked.shape, bool)
    value = np.asarray(masked_log_prob(params, config, tokens, jnp.asarray(masked), target, valid))
    by_size = [np.mean([v for v, chosen in zip(value, sets) if len(chosen) == size]) for size in (1, 2, 3)]
    assert np.mean(by_size) == pytest.approx(exact, abs=1e-4)
    # And the estimator itself, many rows of one draw set each.
    rows = 512
    tiled = [jnp.tile(x[:1], (rows, 1)) for x in (tokens, target, valid)]
    for scheme in ("plain", "stratified", "antithetic"):
        keys = row_keys(jax.random.key(2), jnp.arange(rows))
        estimate = np.asarray(log_likelihood(params, config, *tiled, keys, 6, scheme=scheme, span=3))
        assert estimate.mean() == pytest.approx(exact, abs=4 * estimate.std() / np.sqrt(rows) + 1e-4)


def test_stratified_and_antithetic_draws_vary_less_at_equal_cost(llada):
    """Variance of an 8-draw estimate over 256 repetitions; random weights, so that most of it comes from which positions are masked."""
    params, config = llada["gqa"]
    rows, length = 256, 20
    tokens = jnp.tile(jnp.asarray(np.random.default_rng(1).integers(0, 490, length))[None], (rows, 1))
    target = jnp.broadcast_to(jnp.arange(length)[None] < 12, tokens.shape)
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    spread = {}
    for scheme in ("plain", "stratified", "antithetic"):
        estimate = log_likelihood(params, config, tokens, target, jnp.ones(tokens.shape, bool), keys, 8, scheme=scheme, span=12)
        spread[scheme] = float(np.var(np.asarray(estimate)))
    assert spread["stratified"] < 1.05 * spread["plain"]  # the counts matter little here; on trained weights it is 0.8
    assert spread["antithetic"] < 0.75 * spread["plain"]  # 0.45 on trained weights


@pytest.mark.parametrize("scheme", ["plain", "stratified", "antithetic"])
def test_each_count_is_uniform(scheme):
    keys = row_keys(jax.random.key(0), jnp.arange(4000))
    counts = np.asarray(draw_counts(keys, jnp.full(4000, 5), 4, scheme))
    assert counts.min() == 1 and counts.max() == 5
    for draw in counts:
        np.testing.assert_allclose(np.bincount(draw, minlength=6)[1:] / 4000, 0.2, atol=0.03)


def test_the_reference_rounds_halves_to_even_and_is_not_uniform():
    third = {int(reference_counts(jnp.array([start]), jnp.array([5]), 4)[2, 0]) for start in range(1, 6)}
    assert third == {1, 3, 4}


def test_padding_and_batch_do_not_change_a_row(llada):
    params, config = llada["mha"]
    rng = np.random.default_rng(0)
    row, target = rng.integers(0, 490, 10), np.arange(10) < 6

    def run(left, right, others):
        shape = (1 + others, left + 10 + right)
        tokens, mask, valid = rng.integers(0, 490, shape), rng.random(shape) < 0.5, np.ones(shape, bool)
        tokens[0], mask[0], valid[0] = 500, False, False
        place = slice(left, left + 10)
        tokens[0, place], mask[0, place], valid[0, place] = row, target, True
        keys = row_keys(jax.random.key(5), jnp.arange(3, 4 + others))
        return np.asarray(bound_draws(params, config, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(valid), keys, 4))[:, 0]

    np.testing.assert_allclose(run(4, 2, 2), run(0, 0, 0), rtol=1e-4)


def test_single_token_needs_one_draw(tiny_world):
    tokens = jnp.asarray([[0, 1, 2]])
    target = jnp.asarray([[False, True, False]])
    value = log_likelihood(
        tiny_world.params, tiny_world.config, tokens, target, jnp.ones((1, 3), bool), row_keys(jax.random.key(0), jnp.arange(1)), 1
    )
    logits = masked_logits(tiny_world.params, tiny_world.config, jnp.asarray([[0, 4, 2]]), jnp.ones((1, 3), bool))
    assert float(value[0]) == pytest.approx(float(jax.nn.log_softmax(logits)[0, 1, 1]), abs=1e-5)


def test_unknown_schemes_are_refused():
    keys = row_keys(jax.random.key(0), jnp.arange(1))
    with pytest.raises(ValueError, match="scheme"):
        draw_counts(keys, jnp.array([3]), 4, "sobol")
