"""The step: no leak of the attack into the update, its gradient, LoRA, one compilation, and the same update part by part."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dat_jax import sharding
from dat_jax.checkpoints import TrainState
from dat_jax.config import defaults
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.methods import capo, cat, circuit_breakers, lat, refusal_sft
from dat_jax.models import lora as lora_lib
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training import loop
from dat_jax.training.network import Found, Network, chunk_length
from dat_jax.training.perturbation import Perturbation
from dat_jax.training.step import StepConfig, losses, optimizer, train_step
from dat_jax.training.step import in_parts as in_turns

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2)
P, R = 6, 4
step_fn = jax.jit(train_step, static_argnames=("config", "optimizer"))


def perturbed_by(**changes):
    return cat.Settings(perturbation=Perturbation(**changes))


CONFIG = StepConfig(model=MODEL, inner=cat.inner, loss=cat.loss, settings=perturbed_by(steps=3, radius=0.5), prompt_length=P)
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


def test_attack_steps_do_not_leak_into_the_update(params):
    """With a ball of radius zero the update is the same for 0 and 10 attack steps: the scan leaves no weight gradient behind."""
    adam = optax.sgd(1.0)
    updated = []
    for steps in (0, 10):
        config = dataclasses.replace(CONFIG, settings=perturbed_by(steps=steps, radius=0.0))
        state, _ = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=config, optimizer=adam)
        updated.append(state.trainable)
    # Two programs round sums differently; a leaked gradient would be of the size of the update, 0.1 and more.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *updated)


def test_several_updates_share_one_perturbation(params):
    """Two updates are two steps of gradient descent on one loss under the perturbation that was found for the weights before both."""
    rule, key = optax.sgd(0.1), jax.random.key(0)
    state, metrics = step_fn(fresh(params, rule), None, BATCH, key, config=dataclasses.replace(CONFIG, updates=2), optimizer=rule)
    found = cat.inner(Network(params, None, MODEL, P), BATCH, key, CONFIG.settings)
    expected = params
    for _ in range(2):

        def total(weights):
            return cat.loss(Network(weights, None, MODEL, P), None, BATCH, found, key, CONFIG.settings)[0]

        loss, gradient = jax.value_and_grad(total)(expected)
        expected = jax.tree.map(lambda weight, slope: weight - 0.1 * slope, expected, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.trainable, expected)
    np.testing.assert_allclose(metrics["loss/total"], loss, rtol=1e-4)
    assert int(state.step) == 1 and metrics["skipped"] == 0


def test_a_loss_follows_its_schedule_over_the_training(params):
    """Circuit breakers: alpha * cosine alone at the first step; after half of the steps, a quarter of the way to the distance alone."""
    settings = circuit_breakers.Settings(layers=(1,), alpha=10.0, schedule=2.0)
    config = defaults()
    config.training.steps = 12
    config.methods.circuit_breakers.layers = (1,)
    made = loop.step_config(Model({}, MODEL, None), config, circuit_breakers.METHOD)
    assert (made.steps, made.settings) == (12, settings)
    before, rule = weights.initialize(jax.random.key(1), MODEL), optax.sgd(0.0)
    made = dataclasses.replace(CONFIG, inner=None, loss=circuit_breakers.loss, settings=settings, steps=made.steps)
    for step, done in ((0, 0.0), (6, 0.25), (12, 0.5)):
        state = dataclasses.replace(fresh(params, rule), step=jnp.asarray(step))
        after, metrics = step_fn(state, None, BATCH, jax.random.key(0), config=made, optimizer=rule, reference=before)
        retain, reroute = metrics["loss/retain"], metrics["loss/reroute"]
        assert retain > 0.1 and reroute > 0.01 and int(after.step) == step + 1
        np.testing.assert_allclose(metrics["loss/total"], 10.0 * (done * retain + (1 - done) * reroute), rtol=1e-5)


def test_the_schedule_counts_updates():
    """With four updates in a step the learning rate has reached its end after the last update of the last step, and not before."""
    training = defaults().training
    training.update({"steps": 5, "learning_rate": 1.0, "clip": 1e9, "weight_decay": 0.0})
    rule = optimizer(training, updates=4)
    weights_, state = jnp.zeros(()), None
    state, moves = rule.init(weights_), []
    for _ in range(20):
        move, state = rule.update(jnp.ones(()), state, weights_)
        moves.append(abs(float(move)))
    assert 0 < moves[-1] < 0.05 and moves[10] > 0.3


def test_a_learning_rate_of_zero_leaves_weights_bit_identical(params):
    adam = optax.sgd(0.0)
    state, metrics = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=CONFIG, optimizer=adam)
    jax.tree.map(np.testing.assert_array_equal, params, state.trainable)
    assert metrics["attack/gain"] > 0


def test_gradient_of_the_step_equals_finite_differences(params):
    """The update of plain gradient descent, against differences of the objective at the (fixed) perturbation."""
    perturbed = cat.inner(Network(params, None, MODEL, P), BATCH, jax.random.key(0), CONFIG.settings)
    adam = optax.sgd(1.0)
    state, _ = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=CONFIG, optimizer=adam)
    gradient = jax.tree.map(lambda old, new: old - new, params, state.trainable)
    direction = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape), params)
    h = 1e-3

    @jax.jit
    def value(sign):
        moved = jax.tree.map(lambda w, d: w + sign * h * d, params, direction)
        return losses(moved, None, None, BATCH, perturbed, jax.random.key(0), 0.0, CONFIG)[0]

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


@pytest.mark.parametrize(("most", "length"), [(0, 0), (2 * 8 * 10, 0), (2 * 8 * 10 - 1, 4), (2 * 3 * 10, 2), (1, 1)])
def test_a_chunk_is_the_longest_divisor_whose_logits_are_not_too_many(most, length):
    assert chunk_length(2, 8, 10, most) == length


def test_the_update_does_not_depend_on_how_many_positions_the_head_sees_at_a_time(params):
    adam, updated = optax.sgd(1.0), []
    for most in (0, 2 * len(PROMPTS) * MODEL.vocab_size):  # all at once; the attack two positions at a time, the step one
        config = dataclasses.replace(CONFIG, most_logits=most)
        state, _ = step_fn(fresh(params, adam), None, BATCH, jax.random.key(0), config=config, optimizer=adam)
        updated.append(state.trainable)
    jax.tree.map(lambda whole, chunked: np.testing.assert_allclose(chunked, whole, atol=1e-5), *updated)


def test_logits_of_a_large_vocabulary_are_never_all_there():
    """Of rows x 8 positions x 40,000 tokens the head's output of one position is held, forward and backward, in the attack and after it.

    `whole` is the head's output of three rows. All at once a step takes 6.0 times that, in chunks 1.5 times.
    """
    model, response, taken = dataclasses.replace(MODEL, vocab_size=40_000), 8, []
    rows = lay_out([[1, 5]] * 3, [[True] * 2] * 3, [[4] * response] * 3, P, response)
    rule, frozen = optax.sgd(1.0), weights.initialize(jax.random.key(0), model)
    state = fresh(lora_lib.initialize(jax.random.key(1), model, 2, 4.0), rule)
    for most in (0, 3 * model.vocab_size):
        config = dataclasses.replace(CONFIG, model=model, most_logits=most)
        step = step_fn.lower(state, frozen, Batch(rows, rows, rows), jax.random.key(0), config=config, optimizer=rule)
        taken.append(step.compile().memory_analysis().temp_size_in_bytes)
    whole = 3 * response * model.vocab_size * 4
    assert taken[0] > 5 * whole and taken[1] < 2 * whole, [size / whole for size in taken]


def test_dropout_depends_on_the_step_alone(params):
    adam = optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, dropout=0.5)
    factors = lora_lib.initialize(jax.random.key(1), MODEL, 4, 16.0)
    factors = factors.replace(factors=jax.tree.map(lambda x: x + 0.1, factors.factors))
    state = fresh(factors, adam)
    states = [state.replace(step=jnp.asarray(s)) for s in (3, 3, 4)]
    runs = [step_fn(s, params, BATCH, jax.random.key(0), config=config, optimizer=adam)[1]["loss/total"] for s in states]
    assert runs[0] == runs[1] != runs[2]


# Accumulation: the batch part by part.

SMALL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2, remat=False)
# Normalized steps: the sign of a gradient that is all rounding differs between two orders of summation.
PARTED = dataclasses.replace(CONFIG, model=SMALL, settings=perturbed_by(steps=3, radius=0.5, optimizer="normalized"))


def many_rows(count, prompts, responses):
    """Prompts of one length, so that a mean over the tokens of parts is the mean over all, and responses of several; by their seeds."""
    asked, said = np.random.default_rng(prompts).integers(1, 37, (count, 4)), np.random.default_rng(responses).integers(1, 37, (count, R))
    return lay_out(asked.tolist(), [[False, True, True, True]] * count, [row[: 1 + i % R].tolist() for i, row in enumerate(said)], P, R)


MANY = Batch(away=many_rows(4, 0, 1), toward=many_rows(4, 0, 2), utility=many_rows(8, 3, 4))


@functools.cache
def in_parts(parts, rank, devices):
    """Weights and metrics after one step of plain gradient descent, which moves each weight by its gradient."""
    mesh = sharding.make_mesh(1, devices, 1)
    adam, params = optax.sgd(1.0), weights.initialize(jax.random.key(0), SMALL)
    with jax.set_mesh(mesh):
        factors = lora_lib.initialize(jax.random.key(1), SMALL, rank, 16.0) if rank else None
        if factors is not None:  # b is zero at first, and the gradient of a with it
            factors = factors.replace(factors=jax.tree.map(lambda x: x + 0.05, factors.factors))
        trainable = jax.device_put(params if factors is None else factors, sharding.replicated(mesh))
        frozen = None if factors is None else jax.device_put(params, sharding.replicated(mesh))
        batch = jax.tree.map(lambda leaf: sharding.place_batch(mesh, leaf, len(leaf)), MANY)
        state, metrics = step_fn(
            fresh(trainable, adam), frozen, batch, jax.random.key(0), config=dataclasses.replace(PARTED, parts=parts), optimizer=adam
        )
        return jax.device_get((state.trainable, metrics))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("parts", "devices"), [(4, 1), (2, 2)])
def test_a_batch_in_parts_gives_the_update_and_metrics_of_the_whole(rank, parts, devices):
    (expected, told), (found, metrics) = in_parts(1, rank, 1), in_parts(parts, rank, devices)
    before = weights.initialize(jax.random.key(0), SMALL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    if not rank:
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(before)))  # far more than that
    assert metrics.keys() == told.keys() >= {"loss/total", "loss/away", "nll/refusal", "attack/gain", "attack/norm", "gradient_norm"}
    for name in told:
        np.testing.assert_allclose(metrics[name], told[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_parts_are_the_whole_under_clipping_and_adamw(params):
    """LAT's two updates on one perturbation: AdamW's first moments of clipped gradients, and the weights where these are no rounding."""
    training = defaults().training
    training.update({"steps": 10, "warmup": 0.0, "learning_rate": 1e-2, "clip": 0.05})
    how = Perturbation(steps=2, sites=(0, 1), radius=0.5, absolute_radius=True, optimizer="normalized")
    adam, config = optimizer(training), dataclasses.replace(CONFIG, model=SMALL, updates=2, settings=lat.Settings(how))
    config = dataclasses.replace(config, inner=lat.inner, loss=lat.loss)
    factors = lora_lib.initialize(jax.random.key(1), SMALL, 4, 16.0)
    factors = factors.replace(factors=jax.tree.map(lambda x: x + 0.05, factors.factors))
    (one, told), (two, found) = (
        step_fn(fresh(factors, adam), params, MANY, jax.random.key(0), config=dataclasses.replace(config, parts=parts), optimizer=adam)
        for parts in (1, 4)
    )
    assert told["gradient_norm"] > 2 * training.clip  # it was clipped
    for name in told:
        np.testing.assert_allclose(found[name], told[name], rtol=1e-3, atol=1e-5, err_msg=name)
    moments = (optax.tree.get(state.optimizer, "mu") for state in (one, two))
    for whole, part, before, wanted, after in zip(*map(jax.tree.leaves, (*moments, factors, one.trainable, two.trainable))):
        np.testing.assert_allclose(part, whole, atol=1e-3 * np.abs(whole).max())
        sure = np.abs(whole) > 0.05 * np.abs(whole).max()
        assert np.abs(wanted - before)[sure].min() > 1e-3
        np.testing.assert_allclose(after[sure], wanted[sure], atol=2e-4)


@pytest.mark.parametrize("module", [refusal_sft, capo, circuit_breakers])  # a program of each loss, forward alone
def test_which_losses_are_the_mean_of_their_parts(module, params):
    """Circuit breakers average over the tokens of all rows together, as their reference does: docs/gpu.md says so."""
    settings = circuit_breakers.Settings(layers=(1,)) if module is circuit_breakers else module.METHOD.settings()
    networks = [Network(weights, None, SMALL, P, progress=0.5) for weights in (jax.tree.map(lambda x: 1.1 * x, params), params)]
    zero = Found(delta={0: jnp.zeros((1, P, SMALL.width))}, nll_before_B=jnp.zeros(()), metrics={})

    @jax.jit
    def loss(batch):
        return module.loss(*networks, batch, zero, jax.random.key(0), settings)[0]

    parts, _ = in_turns(MANY, jax.random.key(0), 4)
    mean = np.mean([loss(jax.tree.map(operator.itemgetter(number), parts)) for number in range(4)])
    off = abs(mean / loss(MANY) - 1)
    assert off > 1e-3 if module is circuit_breakers else off < 1e-5
