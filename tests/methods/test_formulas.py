"""Losses against their papers' formulas, in NumPy on logits and streams of the public functions; CAT and R2D2 have files of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.methods import METHODS, capo, circuit_breakers, derta, lat, mixat, refusal_sft, self_consistency
from dat_jax.models import transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.training.losses import Objective, away_loss, unlikely
from dat_jax.training.network import Found, Network
from dat_jax.training.perturbation import Perturbation, perturb

MODEL = ModelConfig(vocab_size=37, width=16, layers=3, heads=2, remat=False)
P, R = 6, 5
PROMPTS, ALLOWED = [[1, 5, 7, 9], [1, 3, 2, 8, 4, 6]], [[True] * 4, [True] * 6]
BATCH = Batch(
    away=lay_out(PROMPTS, ALLOWED, [[4, 5, 0], [9, 9]], P, R),
    toward=lay_out(PROMPTS, ALLOWED, [[2, 2], [3, 2, 1]], P, R),
    utility=lay_out([[1, 8], [1, 9, 9], [3]], [[False] * 2, [False] * 3, [False]], [[5], [6, 7], [8, 8, 8, 8]], P, R),
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def networks():
    """A model and the one that it was before training."""
    return [Network(weights.initialize(jax.random.key(seed), MODEL), None, MODEL, P) for seed in (0, 1)]


@jax.jit
def logp_and_streams(params, rows, delta):
    e_BxTxD = transformer.embed(params, MODEL, rows.tokens_BxT)
    every = tuple(range(MODEL.layers + 1))
    h_BxTxD, streams = transformer.hidden(params, MODEL, e_BxTxD, rows.valid_BxT, add=delta, taps=every)
    return jax.nn.log_softmax(transformer.head(params, MODEL, h_BxTxD)), [streams[site] for site in every]


def forward(network, rows, delta=None):
    """Log-probabilities BxTxV and the streams, as NumPy arrays."""
    return jax.tree.map(np.asarray, logp_and_streams(network.params, rows, delta))


def token_logps(network, rows, delta=None):
    """The log-probability of each response token, a list per row."""
    logp_BxTxV, _ = forward(network, rows, delta)
    return [
        np.array([logp_BxTxV[b, t - 1, rows.tokens_BxT[b, t]] for t in np.flatnonzero(mask)])
        for b, mask in enumerate(np.asarray(rows.response_mask_BxT))
    ]


def nats(network, rows, delta=None):
    return np.array([-row.mean() for row in token_logps(network, rows, delta)])


def found(delta):
    return Found(delta=delta, nll_before_B=jnp.zeros(2), metrics={})


def drawn(*sites):
    """A perturbation of the tokens that may be perturbed."""
    mask_BxPx1 = BATCH.away.prompt_mask_BxT[:, :P, None]
    return {site: 0.3 * jax.random.normal(jax.random.key(site), (2, P, MODEL.width)) * mask_BxPx1 for site in sites}


def test_refusal_sft(networks):
    total, _ = refusal_sft.loss(networks[0], None, BATCH, None, KEY, refusal_sft.Settings(refusal_weight=0.5))
    np.testing.assert_allclose(total, 0.5 * nats(networks[0], BATCH.toward).mean() + nats(networks[0], BATCH.utility).mean(), rtol=1e-5)


CUT = {
    "cat": {"away_weight": 0.25, "toward_weight": 0.5, "utility_weight": 2.0},
    "mixat": {"away_weight": 0.5, "toward_weight": 0.75, "utility_weight": 1.5},
    "self_consistency": {"away_weight": 0.0, "toward_weight": 1.0, "utility_weight": 0.5},
}


@pytest.mark.parametrize("name", CUT)
def test_the_whole_loss_on_both_sides_of_the_cutoffs(networks, name):
    """Of two harmful responses one is beyond the away cutoff, of two refusals one is below the toward cutoff."""
    network, delta, method = networks[0], drawn(0), METHODS[name]
    harmful, refusal = nats(network, BATCH.away, delta), nats(network, BATCH.toward, delta)
    cutoffs = {"away_cutoff": float(harmful.mean()), "toward_cutoff": float(refusal.mean()), "slope": 0.1}
    away = sum(-ce if ce < harmful.mean() else -harmful.mean() - 0.1 * ce for ce in harmful) / 2
    toward = sum(ce if ce > refusal.mean() else refusal.mean() + 0.1 * ce for ce in refusal) / 2
    weights_ = CUT[name]
    expected = weights_["away_weight"] * away + weights_["toward_weight"] * toward
    expected += weights_["utility_weight"] * nats(network, BATCH.utility).mean()
    settings = dataclasses.replace(method.settings(), objective=Objective(**weights_, **cutoffs))
    total, _ = method.loss(network, None, BATCH, found(delta), KEY, settings)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [  # every token has -log p = ln 37 = 3.610918
        ("cat", {}, 0.5 * -3.610918 + 0.5 * 3.610918 + 3.610918),
        ("mixat", {}, 3.610918),
        ("self_consistency", {}, 2 * 3.610918),  # toward and utility, and nothing leads away
        ("cat", {"away_cutoff": 3.0}, 0.5 * (-3 - 0.003610918) + 0.5 * 3.610918 + 3.610918),
        ("mixat", {"away_cutoff": 3.0, "toward_cutoff": 4.0}, 0.5 * (-3 - 0.003610918) + 0.5 * (4 + 0.003610918) + 3.610918),
        ("self_consistency", {"toward_cutoff": 4.0}, (4 + 0.003610918) + 3.610918),
    ],
)
def test_the_whole_loss_of_a_model_that_knows_nothing(networks, name, changes, expected):
    """All weights are zero, so all tokens are equally likely, and the sums are done by hand with the weights of the defaults."""
    nothing = networks[0].replace(params=jax.tree.map(jnp.zeros_like, networks[0].params))
    method = METHODS[name]
    settings = method.settings()
    settings = dataclasses.replace(settings, objective=dataclasses.replace(settings.objective, **changes))
    total, _ = method.loss(nothing, None, BATCH, found(drawn(0)), KEY, settings)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_capo(networks):
    """C-AdvIPO, with each row's own log-probabilities before training and unlikely harmful tokens clamped."""
    now, before = networks
    delta, settings = drawn(0), capo.Settings(beta=0.5, utility_weight=2.0, away_cutoff=3.5)

    def harmful(network, delta=None):
        return np.array([np.maximum(row, -3.5).mean() for row in token_logps(network, BATCH.away, delta)])

    h = -nats(now, BATCH.toward, delta) - harmful(now, delta) + nats(before, BATCH.toward) + harmful(before)
    expected = ((h - 1 / (2 * 0.5)) ** 2).mean() + 2.0 * nats(now, BATCH.utility).mean()
    total, metrics = capo.loss(now, before, BATCH, found(delta), KEY, settings)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["preference"], h.mean(), rtol=1e-4)
    assert any((row < -3.5).any() for row in token_logps(now, BATCH.away, delta)), "no token is clamped: the case shows nothing"


@pytest.mark.parametrize("nll, expected", [(0.5, -np.log(1 - np.exp(-0.5))), (5.1, 0.0), (4.9, -np.log(1 - np.exp(-4.9)))])
def test_log_1_minus_p(nll, expected):
    np.testing.assert_allclose(unlikely(jnp.array([[nll]]), 5.0), [[expected]], rtol=1e-5)
    objective = Objective(away="log_1_minus_p", away_cutoff=5.0)
    np.testing.assert_allclose(away_loss(jnp.array([[nll, 2.0]]), jnp.array([[True, False]]), objective), expected, rtol=1e-5)


def test_log_1_minus_p_has_a_finite_gradient_for_a_certain_token():
    gradient = jax.grad(lambda nll: jnp.sum(unlikely(nll, 5.0)))(jnp.zeros((1, 1)))
    assert np.isfinite(gradient).all()


def test_lat_defence(networks):
    """0.5 CE(refusal) + 0.5 mean -log(1 - p(harmful)) + 1.5 SFT, under perturbations of the embeddings and of a layer."""
    network, delta = networks[0], drawn(0, 2)

    def away(row):
        return np.where(row < -5, 0.0, -np.log1p(-np.exp(row))).mean()

    harmful = np.mean([away(row) for row in token_logps(network, BATCH.away, delta)])
    expected = 0.5 * nats(network, BATCH.toward, delta).mean() + 0.5 * harmful + 1.5 * nats(network, BATCH.utility).mean()
    total, _ = lat.loss(network, None, BATCH, found(delta), KEY, lat.Settings(Perturbation(sites=(0, 2))))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def lat_adversary(network, delta):
    """0.5 CE(harmful) + 0.5 mean -log(1 - p(refusal)), where tokens below e^-5 are 0; responses have 3 and 2 tokens, and 2 and 3."""

    def logps(rows):
        e_BxTxD = transformer.embed(network.params, MODEL, rows.tokens_BxT)
        h_BxTxD = transformer.hidden(network.params, MODEL, e_BxTxD, rows.valid_BxT, add=delta)
        logp_BxTxV = jax.nn.log_softmax(transformer.head(network.params, MODEL, h_BxTxD))
        return [logp_BxTxV[b, t - 1, rows.tokens_BxT[b, t]] for b in range(2) for t in np.flatnonzero(rows.response_mask_BxT[b])]

    harmful, refusal = logps(BATCH.away), logps(BATCH.toward)
    rows = ((harmful[:3], refusal[:2]), (harmful[3:], refusal[2:]))
    return sum(0.5 * -sum(a) / len(a) + 0.5 * sum(jnp.where(x < -5, 0.0, -jnp.log1p(-jnp.exp(x))) for x in b) / len(b) for a, b in rows)


def test_lat_adversary_lowers_its_own_loss_by_adam_within_its_ball(networks):
    """The shipped search: Adam's steps as optax takes them, each token clipped to the ball after each, at both sites."""
    network, sites, steps, radius = networks[0], (0, 2), 3, 0.38
    shipped = lat.Settings().perturbation
    assert (shipped.optimizer, shipped.step_size, shipped.absolute, shipped.absolute_radius) == ("adam", 0.05, True, True)
    gradient = jax.jit(jax.grad(functools.partial(lat_adversary, network)))
    mask_BxPx1 = np.asarray(BATCH.away.prompt_mask_BxT[:, :P, None])
    delta, clipped, rule = {site: jnp.zeros((2, P, MODEL.width)) for site in sites}, 0, optax.scale_by_adam(eps=1e-20)
    moments = rule.init(delta)
    for _ in range(steps):
        moves, moments = rule.update(gradient(delta), moments)
        delta = {site: delta[site] - 0.05 * moves[site] * mask_BxPx1 for site in sites}
        norms = {site: np.linalg.norm(delta[site], axis=-1, keepdims=True) for site in sites}
        clipped += sum((norms[site] > radius).sum() for site in sites)
        delta = {site: delta[site] * np.minimum(1, radius / np.maximum(norms[site], 1e-9)) for site in sites}
    assert 4 < clipped < steps * 2 * mask_BxPx1.sum(), "all tokens are clipped or next to none: the case shows nothing"
    how = dataclasses.replace(shipped, steps=steps, sites=sites, radius=radius)
    result = lat.inner(network, BATCH, KEY, lat.Settings(perturbation=how))
    for site in sites:
        np.testing.assert_allclose(result.delta[site], delta[site], atol=1e-4)
    np.testing.assert_allclose(result.nll_before_B, nats(network, BATCH.away), rtol=1e-5)


def test_an_absolute_radius_is_the_same_at_every_site(networks):
    how = Perturbation(steps=3, sites=(0, 2), radius=0.07, absolute_radius=True, step_size=0.5)
    result = perturb(networks[0], BATCH.away, how)
    for site in (0, 2):
        norms = np.linalg.norm(result.delta[site], axis=-1)
        np.testing.assert_allclose(norms.max(), 0.07, rtol=1e-5)
    assert result.metrics["attack/norm"] <= 0.07 * (1 + 1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_circuit_breakers(networks, progress):
    """Cosine of harmful rows at the chosen layers and distance of benign rows at all, weighted by the schedule."""
    now, before = networks
    settings = circuit_breakers.Settings(layers=(1, 2), alpha=10.0, schedule=2.0)
    valid_away, valid_utility = np.asarray(BATCH.away.valid_BxT), np.asarray(BATCH.utility.valid_BxT)
    cosines, distances = [], []
    for h, h0 in zip(forward(now, BATCH.away)[1][1:3], forward(before, BATCH.away)[1][1:3]):
        cosine = (h * h0).sum(-1) / np.linalg.norm(h, axis=-1) / np.linalg.norm(h0, axis=-1)
        cosines.append(np.maximum(cosine, 0)[valid_away].mean())
    for h, h0 in zip(forward(now, BATCH.utility)[1], forward(before, BATCH.utility)[1]):
        distances.append(np.linalg.norm(h - h0, axis=-1)[valid_utility].mean())
    share = progress / 2.0
    expected = 10.0 * (share * np.mean(distances) + (1 - share) * np.mean(cosines))
    total, _ = circuit_breakers.loss(now.replace(progress=progress), before, BATCH, None, KEY, settings)
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_circuit_breakers_has_a_finite_gradient_where_nothing_has_changed_yet(networks):
    """At the first step every distance is zero, where a norm has no gradient."""
    before = networks[1]

    def total(params):
        now = Network(params, None, MODEL, P, 0, 0.5)
        return circuit_breakers.loss(now, before, BATCH, None, KEY, circuit_breakers.Settings(layers=(1,)))[0]

    gradient = jax.grad(total)(before.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_derta_rows_are_prompt_prefix_and_refusal():
    """Every length of the prefix occurs; what stands behind it is the refusal, scored alone, and nothing else is attended to."""
    seen = set()
    for seed in range(30):
        rows = jax.tree.map(np.asarray, derta.behind_prefixes(BATCH, P, jax.random.key(seed)))
        for b, (harmful, refusal) in enumerate([([4, 5, 0], [2, 2]), ([9, 9], [3, 2, 1])]):
            k = int((rows.valid_BxT[b, P:] & ~rows.response_mask_BxT[b, P:]).sum())
            seen.add((b, k))
            expected = (harmful[:k] + refusal)[:R]
            assert rows.tokens_BxT[b, P : P + len(expected)].tolist() == expected
            assert rows.response_mask_BxT[b].tolist() == [False] * (P + k) + [True] * (len(expected) - k) + [False] * (R - len(expected))
            assert rows.valid_BxT[b, P:].tolist() == [True] * len(expected) + [False] * (R - len(expected))
    assert seen == {(0, k) for k in range(4)} | {(1, k) for k in range(3)}


def test_every_length_of_a_derta_prefix_is_as_likely_as_any_other():
    """Of 4,000 copies of each row; five standard deviations are 137 for a response of 3 tokens and 149 for one of 2."""
    many = jax.tree.map(lambda x: jnp.repeat(x, 4000, axis=0), Batch(away=BATCH.away, toward=BATCH.toward, utility=BATCH.utility))
    rows = derta.behind_prefixes(many, P, KEY)
    k = np.asarray((rows.valid_BxT & ~rows.response_mask_BxT)[:, P:].sum(axis=1)).reshape(2, 4000)
    for row, (lengths, margin) in enumerate(((4, 137), (3, 149))):
        np.testing.assert_allclose(np.bincount(k[row], minlength=lengths), np.full(lengths, 4000 / lengths), atol=margin)


def test_derta(networks):
    """The refusal behind a prefix, and its first token at every position of the harmful response."""
    network, settings = networks[0], derta.Settings(prefix_weight=0.5, transition_weight=2.0, utility_weight=3.0)
    behind = jax.tree.map(np.asarray, derta.behind_prefixes(BATCH, P, KEY))
    logp_BxTxV, _ = forward(network, BATCH.away)
    first = [2, 3]
    transition = np.mean(
        [np.mean([-logp_BxTxV[b, t - 1, first[b]] for t in np.flatnonzero(BATCH.away.response_mask_BxT[b])]) for b in range(2)]
    )
    expected = 0.5 * nats(network, behind).mean() + 2.0 * transition + 3.0 * nats(network, BATCH.utility).mean()
    total, _ = derta.loss(network, None, BATCH, None, KEY, settings)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_what_is_cat_with_other_prompts_refusals_or_settings():
    cat = METHODS["cat"]
    for name in ("mixat", "self_consistency", "dat_self_consistency"):
        assert (METHODS[name].inner, METHODS[name].loss) == (cat.inner, cat.loss)
    assert mixat.Settings().perturbation == Perturbation(radius=0.075) and METHODS["mixat"].prompts == "rewrites"
    assert self_consistency.Settings().objective.away_weight == 0 and METHODS["self_consistency"].refusals == "own"
    distributional = {name: method for name, method in METHODS.items() if name.startswith("dat_")}
    for name, method in distributional.items():
        plain = METHODS[name.removeprefix("dat_")]
        assert (method.prompts, method.key, method.loss, method.inner) == ("sampled", plain.key, plain.loss, plain.inner)
    assert set(distributional) == {"dat_capo", "dat_lat", "dat_circuit_breakers", "dat_self_consistency"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (capo.Settings(beta=0.0), "beta is 0.0; allowed: a number > 0"),
        (lat.Settings(updates=0), "updates is 0; allowed: an integer >= 1"),
        (circuit_breakers.Settings(layers=(3, 3)), r"layers is \(3, 3\); allowed: one or more integers"),
        (circuit_breakers.Settings(schedule=0.5), "schedule is 0.5; allowed: a number >= 1"),
        (mixat.Settings(share=0.0), "share is 0.0; allowed: a share from 0.01 to 1"),
        (mixat.Settings(perturbed=0.0), "perturbed is 0.0; allowed: a share > 0"),
        (derta.Settings(prefix_weight=-1.0), "prefix_weight is -1.0; allowed: a number >= 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        settings.validate("methods.it")


def test_a_layer_that_the_model_does_not_have():
    allowed = "allowed for a model of 3 layers: 0 to 2"
    with pytest.raises(ValueError, match=rf"config\.methods\.circuit_breakers\.layers names site 10; {allowed}"):
        circuit_breakers.Settings().fits("methods.circuit_breakers", MODEL)
    with pytest.raises(ValueError, match=rf"config\.methods\.lat\.perturbation\.sites names site 9; {allowed}"):
        lat.Settings().perturbation.fits("methods.lat.perturbation", MODEL)
