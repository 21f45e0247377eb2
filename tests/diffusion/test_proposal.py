"""Filters and confidences against Dream's recordings, and the two-level draw against the distribution it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dat_jax.diffusion.proposal import draw, forbid, keep_top_k, keep_top_p, propose
from dat_jax.diffusion.schedule import quotas

CONFIDENCE = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}


def test_filters_are_those_of_dream(golden):
    data = np.load(golden / "dream_tiny" / "filters.npz")
    logits = jnp.asarray(data["logits"])
    for name in data.files:
        if name.startswith("top_p_"):
            np.testing.assert_array_equal(keep_top_p(logits, float(name.removeprefix("top_p_"))), data[name])
        elif name.startswith("top_k_"):
            np.testing.assert_array_equal(keep_top_k(logits, int(name.removeprefix("top_k_"))), data[name])


@pytest.mark.parametrize("algorithm", list(CONFIDENCE))
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_confidences_are_those_of_dream(golden, algorithm, top_p):
    data = np.load(golden / "dream_tiny" / "filters.npz")
    logits = jnp.asarray(data["logits"])[None]
    found = propose(logits, temperature=0.0, confidence=CONFIDENCE[algorithm], top_p=top_p, tempered_confidence=True)
    kind = "confidence" if top_p == 1.0 else "confidence_top_p_0.9"
    np.testing.assert_allclose(found.confidence_BxC[0], data[f"{kind}.{algorithm}"], rtol=1e-5, atol=1e-6)
    if top_p == 1.0:
        np.testing.assert_array_equal(found.tokens_BxC[0], data[f"x0.{algorithm}"])


@pytest.mark.parametrize("vocabulary", [5, 23, 1000])
def test_draws_follow_the_distribution(vocabulary):
    logits = forbid(jax.random.normal(jax.random.key(0), (vocabulary,)) * 1.5, (0, vocabulary - 1))
    rows = 40000
    tokens = np.asarray(draw(jnp.broadcast_to(logits, (rows, vocabulary)), jax.random.uniform(jax.random.key(1), (rows, 2))))
    expected = np.asarray(jax.nn.softmax(logits), np.float64) * rows
    observed = np.bincount(tokens, minlength=vocabulary)
    assert observed[0] == observed[-1] == 0
    common = expected >= 5
    cells = np.append(observed[common], observed[~common].sum()), np.append(expected[common], expected[~common].sum())
    cells = (
        (cells[0], cells[1] / cells[1].sum() * rows) if cells[1][-1] > 0 else (cells[0][:-1], cells[1][:-1] / cells[1][:-1].sum() * rows)
    )
    assert stats.chisquare(*cells).pvalue > 0.01


def test_extreme_uniforms_never_draw_what_is_forbidden():
    logits = forbid(jnp.zeros((1, 30)), (0, 1, 28, 29))
    for first in (0.0, 1 - 2**-24):
        for second in (0.0, 1 - 2**-24):
            token = int(draw(logits, jnp.array([[first, second]], jnp.float32))[0])
            assert 2 <= token <= 27


@pytest.mark.parametrize("schedule", ["even", "rounded", "times"])
def test_quotas_spend_every_mask_of_every_row(schedule):
    masked = jnp.array([[7, 0], [3, 5], [0, 0], [1, 8]])
    quota = np.asarray(quotas(masked, 4, schedule)).reshape(2, 4, 4)  # block, step, row
    assert (quota >= 0).all()
    np.testing.assert_array_equal(quota.sum(axis=1).T, masked)
    if schedule == "even":
        np.testing.assert_array_equal(quota[0, :, 0], [2, 2, 2, 1])


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="cosine"):
        quotas(jnp.ones((1, 1), jnp.int32), 2, "cosine")
