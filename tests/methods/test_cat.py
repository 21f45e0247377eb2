"""The loss and inner maximisation of CAT, which DAT shares, on a batch small enough for separate passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.methods import METHODS, cat
from dat_jax.methods.method import StepShape
from dat_jax.models import flops, transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.training.losses import Objective
from dat_jax.training.network import Found, Network
from dat_jax.training.perturbation import Perturbation, perturb

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2)
P, R = 6, 4
PROMPTS, ALLOWED = [[1, 5, 7, 9], [1, 3, 2, 8, 4, 6]], [[True] * 4, [True] * 6]
BATCH = Batch(
    away=lay_out(PROMPTS, ALLOWED, [[4, 5, 0], [9, 9]], P, R),
    toward=lay_out(PROMPTS, ALLOWED, [[2, 2], [3, 2, 1]], P, R),
    utility=lay_out([[1, 8], [1, 9, 9], [3]], [[False] * 2, [False] * 3, [False]], [[5], [6, 7], [8, 8, 8, 8]], P, R),
)


@pytest.fixture(scope="module")
def network():
    return Network(weights.initialize(jax.random.key(0), MODEL), None, MODEL, P)


def ce(network, rows, delta_BxPxD=None):
    """Nats per response token of each row, from the public logits function; with a perturbation from the layers' own pieces."""
    if delta_BxPxD is None:
        logits = transformer.logits(network.params, MODEL, rows.tokens_BxT, rows.valid_BxT)
    else:
        e_BxTxD = transformer.embed(network.params, MODEL, rows.tokens_BxT).at[:, :P].add(delta_BxPxD)
        logits = transformer.head(network.params, MODEL, transformer.hidden(network.params, MODEL, e_BxTxD, rows.valid_BxT))
    logp, means = np.asarray(jax.nn.log_softmax(logits)), []
    for row, mask in enumerate(rows.response_mask_BxT):
        at = np.flatnonzero(mask)
        means.append(np.mean([-logp[row, t - 1, rows.tokens_BxT[row, t]] for t in at]))
    return np.asarray(means)


def no_perturbation(network):
    return Found(delta={0: jnp.zeros((2, P, MODEL.width))}, nll_before_B=jnp.asarray(ce(network, BATCH.away)), metrics={})


def loss(network, batch, found, settings=cat.Settings()):
    return jax.jit(cat.loss, static_argnums=5)(network, None, batch, found, jax.random.key(0), settings)


def test_terms_equal_separate_forward_passes(network):
    """One pass over away, toward and utility rows gives what three passes give."""
    total, metrics = loss(network, BATCH, no_perturbation(network))
    np.testing.assert_allclose(metrics["nll/harmful"], ce(network, BATCH.away).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/refusal"], ce(network, BATCH.toward).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/utility"], ce(network, BATCH.utility).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["attack/gain"], 0.0, atol=1e-5)
    np.testing.assert_allclose(
        metrics["loss/total"], 0.5 * metrics["loss/away"] + 0.5 * metrics["loss/toward"] + metrics["loss/utility"], rtol=1e-6
    )
    assert total == metrics["loss/total"]


def test_the_perturbation_reaches_away_and_toward_rows_and_no_utility_row(network):
    draw = jax.random.normal(jax.random.key(2), (2, P, MODEL.width)) * BATCH.away.prompt_mask_BxT[:, :P, None]
    _, metrics = loss(network, BATCH, no_perturbation(network).replace(delta={0: draw}))
    np.testing.assert_allclose(metrics["nll/harmful"], ce(network, BATCH.away, draw).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/refusal"], ce(network, BATCH.toward, draw).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/utility"], ce(network, BATCH.utility).mean(), rtol=1e-5)
    assert np.abs(ce(network, BATCH.away, draw) - ce(network, BATCH.away)).min() > 0.1
    gain = ce(network, BATCH.away).mean() - ce(network, BATCH.away, draw).mean()
    np.testing.assert_allclose(metrics["attack/gain"], gain, atol=1e-5)


@pytest.mark.parametrize(
    ("retention", "most_logits"), [("kl", 0), ("kl", 3 * 2 * MODEL.vocab_size), ("reverse_kl", 3 * 2 * MODEL.vocab_size)]
)
def test_retention_by_divergence_from_the_model_before_training(network, retention, most_logits):
    """KL(before || now), or KL(now || before), where a utility row's response is predicted, from the public logits of both models."""
    before = Network(weights.initialize(jax.random.key(1), MODEL), None, MODEL, P)
    settings = cat.Settings(objective=Objective(retention=retention))
    rows = BATCH.utility
    p, q = (jax.nn.log_softmax(transformer.logits(net.params, MODEL, rows.tokens_BxT, rows.valid_BxT)) for net in (before, network))
    if retention == "reverse_kl":
        p, q = q, p
    kl_BxT = np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=-1))
    expected = np.mean([np.mean([kl_BxT[row, t - 1] for t in np.flatnonzero(mask)]) for row, mask in enumerate(rows.response_mask_BxT)])
    run = jax.jit(cat.loss, static_argnums=5)
    _, metrics = run(network.replace(most_logits=most_logits), before, BATCH, no_perturbation(network), jax.random.key(0), settings)
    np.testing.assert_allclose(metrics["loss/utility"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/harmful"], ce(network, BATCH.away).mean(), rtol=1e-5)
    _, same = run(network, network, BATCH, no_perturbation(network), jax.random.key(0), settings)
    np.testing.assert_allclose(same["loss/utility"], 0.0, atol=1e-6)


def test_the_model_before_training_is_asked_for_only_where_it_is_looked_at():
    shape = StepShape(P, R, 2, 3, 0)
    by_nll, by_kl = (cat.Settings(objective=Objective(retention=name)) for name in ("nll", "kl"))
    assert cat.METHOD.needs_reference(cat.Settings(objective=Objective(retention="reverse_kl")))
    assert not cat.METHOD.needs_reference(by_nll) and METHODS["dat"].needs_reference(by_kl)
    more = cat.step_flops(MODEL, by_kl, shape)["defence"] - cat.step_flops(MODEL, by_nll, shape)["defence"]
    assert more == flops.forward(MODEL, flops.Pass(3, P + R, R))


def test_token_zero_is_scored(network):
    """The reference drops token id 0 from the loss; here the last token of the first target is id 0 and counts."""
    without = Batch(away=lay_out(PROMPTS, ALLOWED, [[4, 5], [9, 9]], P, R), toward=BATCH.toward, utility=BATCH.utility)
    one, _ = loss(network, BATCH, no_perturbation(network))
    other, _ = loss(network, without, no_perturbation(network))
    assert abs(float(one) - float(other)) > 1e-4


def test_the_inner_maximisation_is_the_perturbation_of_the_away_rows(network):
    settings = cat.Settings(perturbation=Perturbation(steps=2, radius=0.5))
    found = cat.inner(network, BATCH, jax.random.key(0), settings)
    expected = perturb(network, BATCH.away, settings.perturbation)
    np.testing.assert_array_equal(found.delta[0], expected.delta[0])
    assert np.abs(np.asarray(found.delta[0])).max() > 0


def test_a_share_of_the_rows_is_perturbed(network):
    settings = cat.Settings(perturbation=Perturbation(steps=2, radius=0.5), perturbed=0.5)
    found = cat.inner(network, BATCH, jax.random.key(0), settings)
    alone = perturb(network, BATCH.away.rows(slice(0, 1)), settings.perturbation)
    np.testing.assert_allclose(found.delta[0][0], alone.delta[0][0], atol=1e-6)
    assert not np.any(found.delta[0][1]) and found.nll_before_B.shape == (1,)
    _, metrics = loss(network, BATCH, found, settings)
    gain = ce(network, BATCH.away)[0] - ce(network, BATCH.away, found.delta[0])[0]
    np.testing.assert_allclose(metrics["attack/gain"], gain, atol=1e-5)
    shape = StepShape(P, R, 16, 3, 0)
    whole, half = (cat.step_flops(MODEL, cat.Settings(perturbation=settings.perturbation, perturbed=s), shape) for s in (1.0, 0.5))
    assert half["attack"] == whole["attack"] / 2 and half["defence"] == whole["defence"]


def test_benign_answers_are_held_under_a_perturbation_against_them(network):
    """Of three utility rows one is perturbed, so that its answer becomes unlikely, and its answer is what is learned under that."""
    rows = lay_out([[1, 8], [1, 9, 9], [3]], [[False, True], [True] * 3, [True]], [[5], [6, 7], [8, 8, 8, 8]], P, R)
    batch, holding = BATCH.replace(utility=rows), Perturbation(steps=2, radius=0.5)
    settings = cat.Settings(perturbation=Perturbation(steps=1, radius=0.5), held=0.4, holding=holding)
    found = cat.inner(network, batch, jax.random.key(0), settings)
    plain = cat.inner(network, batch, jax.random.key(0), cat.Settings(perturbation=settings.perturbation))
    np.testing.assert_array_equal(found.delta[0], plain.delta[0])
    assert plain.held is None and not np.any(found.held[0][1:]) and np.any(found.held[0][0])
    assert not np.any(found.held[0][0][~np.asarray(rows.prompt_mask_BxT[0, :P])])
    before, under = ce(network, rows), ce(network, rows, found.held[0])
    assert under[0] > before[0] + 0.01 and np.allclose(under[1:], before[1:])
    _, metrics = loss(network, batch, found, settings)
    np.testing.assert_allclose(metrics["loss/utility"], under.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/held"], under[0], rtol=1e-5)
    shape = StepShape(P, R, 16, 10, 0)
    more = cat.step_flops(MODEL, settings, shape)["attack"] - cat.step_flops(MODEL, cat.Settings(settings.perturbation), shape)["attack"]
    assert more == flops.attack(MODEL, 2, (0,), False, flops.Pass(4, P + R, R))


@pytest.mark.parametrize(
    ("rows", "share", "expected"), [(16, 0.5, list(range(0, 16, 2))), (4, 1.0, [0, 1, 2, 3]), (3, 0.01, [0]), (5, 0.6, [0, 1, 3])]
)
def test_perturbed_rows_are_spread_over_the_batch(rows, share, expected):
    assert cat.chosen(rows, share).tolist() == expected


def test_a_share_that_cannot_be():
    with pytest.raises(ValueError, match=r"config\.methods\.cat\.perturbed is 0\.0; allowed: a share > 0 and <= 1"):
        cat.Settings(perturbed=0.0).validate("methods.cat")


def test_dat_is_cat_on_sampled_prompts():
    one, other = METHODS["cat"], METHODS["dat"]
    assert (one.prompts, other.prompts) == ("requests", "sampled")
    assert (one.inner, one.loss, one.key, one.settings, one.terms) == (other.inner, other.loss, other.key, other.settings, other.terms)
    assert not METHODS["undefended"].trains and METHODS["undefended"].loss is None
