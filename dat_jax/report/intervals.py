"""Intervals for rates: Wilson's for one run, and the paired bootstrap over behaviors where two models share no seed."""

import math
from collections.abc import Mapping

import numpy as np

Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal


def wilson(count: float, total: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a binomial rate; it stays inside [0, 1] and is not empty at 0 or `total` successes.

    Args:
      count: successes; a fraction is allowed, for rates that were averaged over seeds.
      total: trials. 0 trials say nothing: (0, 1).
      z: normal quantile of the wanted coverage; the default is 95 %.

    Raises:
      ValueError: when count is outside [0, total].
    Source: Wilson 1927, without continuity correction.
    """
    if total < 0 or not 0 <= count <= total:
        raise ValueError(f"wilson: count must lie in [0, total], found count={count}, total={total}")
    if total == 0:
        return 0.0, 1.0
    rate = count / total
    scale = 1.0 / (1.0 + z * z / total)
    centre = scale * (rate + z * z / (2 * total))
    half = scale * z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == total else min(1.0, centre + half)
    return low, high


def clustered(outcomes: Mapping[str, list[bool]]) -> tuple[float, float, float]:
    """Rate over several seeds with the interval over behaviors: the repeats of one behavior count as one trial.

    The same behavior under another seed is not an independent trial, so Wilson's interval is taken with as many trials as there are
    behaviors. It does not collapse when every outcome agrees. How far seeds lie apart is not in it: see `statistics.spread`.

    Args:
      outcomes: behavior id -> one outcome per seed.

    Returns: (rate, low, high); the rate is the mean over behaviors of their mean over seeds.
    """
    if not outcomes:
        return 0.0, 0.0, 1.0
    means = [sum(values) / len(values) for values in outcomes.values()]
    count = min(float(np.sum(means)), float(len(means)))
    return (count / len(means), *wilson(count, len(means)))


def paired_difference(
    first: Mapping[str, list[bool]], second: Mapping[str, list[bool]], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two rates (first - second) over the behaviors both were tried on, with a 95 % bootstrap interval over behaviors.

    Pairing removes what the two methods share, how hard each behavior is. Behaviors are resampled, seeds are not: `statistics.difference`
    does both where the two share any.

    Returns: (difference, low, high); (0, -1, 1) when no behavior is shared.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        return 0.0, -1.0, 1.0
    differences = np.array([np.mean(first[name]) - np.mean(second[name]) for name in shared])
    draws = np.random.default_rng(seed).integers(len(shared), size=(resamples, len(shared)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
