"""The objective's closed forms and the step: cutoffs, no leak of the attack into the update, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dat_jax.checkpoints import TrainState
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.models import lora as lora_lib
from dat_jax.models import transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.training.objectives import Objective, away_loss, cross_entropy, toward_loss
from dat_jax.training.perturbation import Attack
from dat_jax.training.step import StepConfig, losses, train_step

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2)
P, R = 6, 4
step_fn = jax.jit(train_step, static_argnames=("config", "optimizer"))
CONFIG = StepConfig(model=MODEL, attack=Attack(steps=3, radius=0.5), objective=Objective(), prompt_length=P)
PROMPTS, ALLOWED = [[1, 5, 7, 9], [1, 3, 2, 8, 4, 6]], [[True] * 4, [True] * 6]
BATCH = Batch(
    away=lay_out(PROMPTS, ALLOWED, [[4, 5, 0], [9, 9]], P, R),
    toward=lay_out(PROMPTS, ALLOWED, [[2, 2], [3, 2, 1]], P, R),
    utility=lay_out([[1, 8], [1, 9, 9], [3]], [[False] * 2, [False] * 3, [False]], [[5], [6, 7], [8, 8, 8, 8]], P, R),
)


@pytest.fixture(scope="module")
def params():
    return weights.initialize(jax.random.key(0), MODEL)


def fresh(trainable, adam):
    return TrainState(step=jnp.zeros((), jnp.int32), trainable=trainable, optimizer=adam.init(trainable))


@pytest.mark.parametrize(
    ("over", "away", "toward", "gradient"),
    [
        # examples' means 3.5 and 6; of tokens 1, 6 | 6; of the batch 13 / 3
        ("example", (-3.5 - 5.006) / 2, (3.5 + 6) / 2, [[-0.25, -0.25], [-0.0005, 0.0]]),
        ("token", ((-1 - 5.006) / 2 - 5.006) / 2, (3.5 + 6) / 2, [[-0.25, -0.00025], [-0.0005, 0.0]]),
        ("batch", -13 / 3, 13 / 3, [[-1 / 3, -1 / 3], [-1 / 3, 0.0]]),
    ],
)
def test_cutoffs(over, away, toward, gradient):
    """Closed forms: the padding token counts nowhere, and beyond the cutoff a thousandth of the gradient is left."""
    nll, mask = jnp.asarray([[1.0, 6.0], [6.0, 0.0]]), jnp.asarray([[True, True], [True, False]])
    objective = Objective(cutoff_over=over)
    np.testing.assert_allclose(away_loss(nll, mask, objective), away, rtol=1e-6)
    np.testing.assert_allclose(toward_loss(nll, mask, objective), toward, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(away_loss)(nll, mask, objective), gradient, rtol=1e-5)


def test_a_token_below_the_toward_cutoff_is_all_but_left_alone():
    nll, mask = jnp.asarray([[2.0, 0.1]]), jnp.ones((1, 2), bool)
    np.testing.assert_allclose(toward_loss(nll, mask, Objective(cutoff_over="token")), (2.0 + 0.5001) / 2, rtol=1e-6)
    np.testing.assert_allclose(toward_loss(nll, mask, Objective()), 1.05, rtol=1e-6)


def test_a_cutoff_over_something_else_is_refused():
    with pytest.raises(ValueError, match=r"objective.cutoff_over is 'row'; allowed: token \| example \| batch"):
        Objective(cutoff_over="row").validate("objective")


def test_per_example_and_pooled_cross_entropy():
    nll, mask = jnp.asarray([[1.0, 3.0], [4.0, 0.0]]), jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(cross_entropy(nll, mask), [2.0, 4.0])
    np.testing.assert_allclose(cross_entropy(nll, mask, pooled=True), [8.0 / 3], rtol=1e-6)


def test_terms_equal_separate_forward_passes(params):
    """One pass over away, toward and utility rows gives what three passes give, from the public logits function."""

    def ce(rows):
        logp = np.asarray(jax.nn.log_softmax(transformer.logits(params, MODEL, rows.tokens_BxT, rows.valid_BxT)))
        means = []
        for row, mask in enumerate(rows.response_mask_BxT):
            at = np.flatnonzero(mask)
            means.append(np.mean([-logp[row, t - 1, rows.tokens_BxT[row, t]] for t in at]))
        return np.asarray(means)

    zero = jnp.zeros((2, P, 16))
    _, metrics = losses(params, None, BATCH, zero, jax.random.key(0), CONFIG)
    np.testing.assert_allclose(metrics["nll/harmful"], ce(BATCH.away).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/refusal"], ce(BATCH.toward).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/utility"], ce(BATCH.utility).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss/total"], 0.5 * metrics["loss/away"] + 0.5 * metrics["loss/toward"] + metrics["loss/utility"], rtol=1e-6
    )


def test_token_zero_is_scored(params):
    """The reference drops token id 0 from the loss; here the last token of the first target is id 0 and counts."""
    without = Batch(away=lay_out(PROMPTS, ALLOWED, [[4, 5], [9, 9]], P, R), toward=BATCH.toward, utility=BATCH.utility)
    zero = jnp.zeros((2, P, 16))
    one, _ = losses(params, None, BATCH, zero, jax.random.key(0), CONFIG)
    other, _ = losses(params, None, without, zero, jax.random.key(0), CONFIG)
    assert abs(float(one) - float(other)) > 1e-4


def test_attack_steps_do_not_leak_into_the_update(params):
    """With a ball of radius zero the update is the same for 0 and 10 attack steps: the scan leaves no weight gradient behind."""
    adam = optax.sgd(1.0)
    updated = []
    for steps in (0, 10):
        config = dataclasses.replace(CONFIG, attack=Attack(steps=steps, radius=0.0))
        state, _ = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=config, optimizer=adam)
        updated.append(state.trainable)
    jax.tree.map(np.testing.assert_array_equal, *updated)


def test_a_learning_rate_of_zero_leaves_weights_bit_identical(params):
    adam = optax.sgd(0.0)
    state, metrics = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=CONFIG, optimizer=adam)
    jax.tree.map(np.testing.assert_array_equal, params, state.trainable)
    assert metrics["attack/gain"] > 0


def test_gradient_of_the_step_equals_finite_differences(params):
    """The update of plain gradient descent, against differences of the objective at the (fixed) perturbation."""
    from dat_jax.training.perturbation import perturb

    delta, _ = perturb(params, MODEL, BATCH.away, CONFIG.attack, P)
    adam = optax.sgd(1.0)
    state, _ = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=CONFIG, optimizer=adam)
    gradient = jax.tree.map(lambda old, new: old - new, params, state.trainable)
    direction = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape), params)
    h = 1e-3

    def value(sign):
        moved = jax.tree.map(lambda w, d: w + sign * h * d, params, direction)
        return losses(moved, None, BATCH, delta, jax.random.key(0), CONFIG)[0]

    expected = (value(1) - value(-1)) / (2 * h)
    found = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(found, expected, rtol=2e-2)


def test_lora_step_leaves_the_frozen_weights_alone_and_lowers_the_loss(params):
    adam = optax.adam(1e-2)
    frozen = jax.tree.map(jnp.copy, params)
    state = fresh(lora_lib.initialize(jax.random.key(1), MODEL, 4, 16.0), adam)
    step = step_fn
    totals, before = [], step_fn._cache_size()
    for _ in range(25):
        state, metrics = step(state, frozen, BATCH, jax.random.key(0), config=CONFIG, optimizer=adam)
        totals.append(float(metrics["loss/total"]))
    jax.tree.map(np.testing.assert_array_equal, params, frozen)
    assert totals[-1] < totals[0] - 0.5
    assert step._cache_size() - before == 1


def test_dropout_depends_on_the_step_alone(params):
    adam = optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, dropout=0.5)
    factors = lora_lib.initialize(jax.random.key(1), MODEL, 4, 16.0)
    factors = factors.replace(factors=jax.tree.map(lambda x: x + 0.1, factors.factors))
    state = fresh(factors, adam)
    states = [state.replace(step=jnp.asarray(s)) for s in (3, 3, 4)]
    runs = [step_fn(s, params, BATCH, jax.random.key(0), config=config, optimizer=adam)[1]["loss/total"] for s in states]
    assert runs[0] == runs[1] != runs[2]
