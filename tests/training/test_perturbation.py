"""The inner maximisation: its gradient, its ball, its mask, and that it leaves the weights alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.data.conversations import lay_out
from dat_jax.models import transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.training.network import Network, embed, example_mean, response_nll
from dat_jax.training.perturbation import Perturbation, mean_embedding_norm, perturb, project

CONFIG = ModelConfig(vocab_size=37, width=16, layers=2, heads=2, remat=False)
P, R = 6, 4
search = jax.jit(perturb, static_argnums=2)


@pytest.fixture(scope="module")
def network():
    return Network(weights.initialize(jax.random.key(0), CONFIG), None, CONFIG, P)


def run(network, batch, how):
    """The perturbation of the embeddings, alone, and all that was found."""
    found = search(network, batch, how)
    assert list(found.delta) == [0]
    return found.delta[0], found


@pytest.fixture(scope="module")
def batch():
    prompts = [[1, 5, 7, 9], [1, 3, 2, 8, 4, 6], [1, 2]]
    allowed = [[False, True, True, False], [False, True, True, True, True, False], [False, True]]
    return lay_out(prompts, allowed, [[4, 5, 0], [9], [7, 7, 7, 7]], P, R)


@jax.jit
def nll(network, batch, delta_BxPxD):
    return example_mean(response_nll(network, embed(network, batch), batch, {0: delta_BxPxD}), batch, P)


def test_each_row_has_a_radius_between_the_narrowest_and_the_whole(network, batch):
    """Steps as long as the ball is wide: every perturbed token lies on its row's own ball, and another key gives other balls."""
    many = jax.tree.map(lambda x: np.repeat(x, 40, axis=0), batch)
    how, unit = Perturbation(steps=4, radius=0.5, step_size=2.0, narrowest=0.4), mean_embedding_norm(network.params)
    found = search(network, many, how, jax.random.key(0))
    norms_BxP = np.linalg.norm(found.delta[0], axis=-1) / unit
    mask_BxP = np.asarray(many.prompt_mask_BxT)[:, :P]
    radius_B = norms_BxP.max(axis=1)
    np.testing.assert_allclose(norms_BxP, np.where(mask_BxP, radius_B[:, None], 0.0), rtol=1e-4)
    assert 0.2 <= radius_B.min() < 0.22 and 0.48 < radius_B.max() <= 0.5 * (1 + 1e-5)
    np.testing.assert_allclose(found.metrics["attack/at_radius"], 1.0)
    other = np.linalg.norm(search(network, many, how, jax.random.key(1)).delta[0], axis=-1).max(axis=1) / unit
    assert np.abs(other - radius_B).mean() > 0.05


def test_gradient_equals_finite_differences(network, batch):
    delta = 0.1 * jax.random.normal(jax.random.key(1), (3, P, 16))
    gradient = jax.grad(lambda d: jnp.sum(nll(network, batch, d)))(delta)
    for seed in range(5):
        direction = jax.random.normal(jax.random.key(seed), delta.shape)
        h = 1e-2
        numeric = jnp.sum(nll(network, batch, delta + h * direction) - nll(network, batch, delta - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(gradient * direction), numeric, rtol=2e-2, atol=1e-3)


def test_response_nll_is_the_models_own_cross_entropy(network, batch):
    logits_BxTxV = transformer.logits(network.params, CONFIG, batch.tokens_BxT, batch.valid_BxT)
    logp_BxTxV = np.asarray(jax.nn.log_softmax(logits_BxTxV))
    value = response_nll(network, embed(network, batch), batch)
    for row, length in enumerate([3, 1, 4]):
        expected = [-logp_BxTxV[row, P + i - 1, batch.tokens_BxT[row, P + i]] for i in range(length)] + [0.0] * (R - length)
        np.testing.assert_allclose(value[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sign", "normalized", "adam"])
@pytest.mark.parametrize("iterate", ["last", "best"])
def test_ball_mask_and_ascent(network, batch, optimizer, iterate):
    how = Perturbation(steps=12, radius=0.5, step_size=0.3, optimizer=optimizer, iterate=iterate)
    delta, found = run(network, batch, how)
    radius = 0.5 * mean_embedding_norm(network.params)
    norms = np.linalg.norm(delta, axis=-1)
    assert norms.max() <= radius * (1 + 1e-5)
    assert norms.max() > 0.9 * radius  # the ball binds: the steps are a share of it
    outside = ~np.asarray(batch.prompt_mask_BxT[:, :P])
    assert np.all(np.asarray(delta)[outside] == 0)
    before, after = nll(network, batch, jnp.zeros_like(delta)), nll(network, batch, delta)
    np.testing.assert_allclose(found.nll_before_B, before, rtol=1e-5)
    assert np.all(after < before)
    assert 0 < found.metrics["attack/at_radius"] <= 1
    np.testing.assert_allclose(found.metrics["attack/norm"], norms[~outside].mean() / mean_embedding_norm(network.params), rtol=1e-5)


def test_best_is_never_worse_than_any_earlier_iterate(network, batch):
    """With overlong steps the path goes up and down; the best of it is found by brute force over its prefixes."""
    how = Perturbation(steps=8, radius=3.0, step_size=1.5, optimizer="sign", iterate="last")
    path = [nll(network, batch, run(network, batch, dataclasses.replace(how, steps=k))[0]) for k in range(9)]
    best = run(network, batch, dataclasses.replace(how, iterate="best"))[0]
    np.testing.assert_allclose(nll(network, batch, best), np.min(path, axis=0), rtol=1e-5)


def test_sign_step_is_the_references_first_step(network, batch):
    """One absolute step inside the ball is -step_size * sign(gradient), as in Continuous-AdvTrain's embedding attack."""
    how = Perturbation(steps=1, radius=1e6, step_size=1e-3, absolute=True)
    gradient = jax.grad(lambda d: jnp.sum(nll(network, batch, d)))(jnp.zeros((3, P, 16)))
    delta, _ = run(network, batch, how)
    mask = np.asarray(batch.prompt_mask_BxT[:, :P, None])
    np.testing.assert_allclose(delta, np.where(mask, -1e-3 * np.sign(gradient), 0.0), atol=1e-9)


def test_normalized_step_has_the_length_asked_for(network, batch):
    how = Perturbation(steps=1, radius=0.5, step_size=0.2, optimizer="normalized")
    delta, _ = run(network, batch, how)
    norms = np.linalg.norm(delta, axis=-1)[np.asarray(batch.prompt_mask_BxT[:, :P])]
    np.testing.assert_allclose(norms, 0.2 * 0.5 * mean_embedding_norm(network.params), rtol=1e-5)


def test_delta_stays_float32_in_a_bfloat16_model(batch):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights.initialize(jax.random.key(0), config))
    network = Network(params, None, config, P)
    delta, _ = run(network, batch, Perturbation(steps=2, absolute=True, step_size=1e-4, radius=1.0))
    assert delta.dtype == jnp.float32
    e_BxTxD = embed(network, batch)
    assert e_BxTxD.dtype == jnp.bfloat16
    moved = transformer.hidden(params, config, e_BxTxD, batch.valid_BxT, add={0: delta}, taps=(0,))[1][0]
    assert moved.dtype == jnp.float32  # in bfloat16 the sum would lose steps of 1e-4
    np.testing.assert_allclose((moved - e_BxTxD.astype(jnp.float32))[:, :P], delta, atol=1e-7)


def test_a_rows_perturbation_does_not_depend_on_its_neighbours(network, batch):
    how = Perturbation(steps=5, radius=0.5)
    together, _ = run(network, batch, how)
    alone, _ = run(network, batch.rows(slice(0, 1)), how)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_project_is_the_nearest_point_of_the_ball():
    point = jnp.asarray([[[3.0, 4.0], [0.3, 0.4]]])
    np.testing.assert_allclose(project(point, 1.0), [[[0.6, 0.8], [0.3, 0.4]]], rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [{"radius": -1.0}, {"steps": -1}, {"optimizer": "sgd"}, {"iterate": "first"}, {"step_size": 0.0}, {"rows": -1}, {"narrowest": 0.0}],
)
def test_a_bad_value_names_its_key(bad):
    with pytest.raises(ValueError, match=rf"config\.methods\.cat\.perturbation\.{next(iter(bad))} is"):
        Perturbation(**bad).validate("methods.cat.perturbation")
