"""Wilson against scipy; the interval over seeds and the paired difference against closed forms and their limits."""

import math

import numpy as np
import pytest

from dat_jax.report import intervals


@pytest.mark.parametrize("total", [1, 7, 40, 1000])
def test_wilson_is_scipys(total):
    stats = pytest.importorskip("scipy.stats")
    for count in {0, 1, total // 3, total // 2, total - 1, total}:
        expected = stats.binomtest(count, total).proportion_ci(method="wilson")
        assert intervals.wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_ends_and_without_trials():
    assert intervals.wilson(0, 20)[0] == 0.0 and intervals.wilson(20, 20)[1] == 1.0
    assert intervals.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(count, total):
    with pytest.raises(ValueError, match="wilson: count"):
        intervals.wilson(count, total)


def test_repeats_over_seeds_do_not_narrow_the_interval():
    once = {str(i): [i < 3] for i in range(10)}
    thrice = {name: values * 3 for name, values in once.items()}
    assert intervals.clustered(once) == intervals.clustered(thrice)
    assert intervals.clustered(once) == (0.3, *intervals.wilson(3, 10))
    mixed = {"a": [True, False], "b": [False, False]}
    assert intervals.clustered(mixed) == (0.25, *intervals.wilson(0.5, 2))
    assert intervals.clustered({}) == (0.0, 0.0, 1.0)


def test_paired_difference_covers_like_the_normal_approximation():
    generator = np.random.default_rng(1)
    first = {str(i): [bool(generator.random() < 0.2)] for i in range(400)}
    second = {str(i): [bool(generator.random() < 0.6)] for i in range(400)}
    difference, low, high = intervals.paired_difference(first, second)
    values = np.array([first[name][0] - float(second[name][0]) for name in first])
    half = 1.96 * values.std() / math.sqrt(400)
    assert difference == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.01)


def test_paired_difference_uses_shared_behaviors_alone():
    assert intervals.paired_difference({"a": [True], "b": [True]}, {"a": [True], "c": [False]}) == (0.0, 0.0, 0.0)
    assert intervals.paired_difference({"a": [True]}, {"b": [True]}) == (0.0, -1.0, 1.0)
