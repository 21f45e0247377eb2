"""The losses' closed forms: what is averaged, and what is left beyond a cutoff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.training.losses import Objective, away_loss, cross_entropy, toward_loss


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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"cutoff_over": "row"}, r"config\.methods\.cat\.objective\.cutoff_over is 'row'; allowed: token \| example \| batch"),
        ({"slope": -0.1}, r"config\.methods\.cat\.objective\.slope is -0\.1; allowed: a number >= 0"),
    ],
)
def test_a_bad_value_names_its_key(bad, message):
    Objective().validate("methods.cat.objective")
    with pytest.raises(ValueError, match=message):
        Objective(**bad).validate("methods.cat.objective")


def test_per_example_and_pooled_cross_entropy():
    nll, mask = jnp.asarray([[1.0, 3.0], [4.0, 0.0]]), jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(cross_entropy(nll, mask), [2.0, 4.0])
    np.testing.assert_allclose(cross_entropy(nll, mask, pooled=True), [8.0 / 3], rtol=1e-6)
