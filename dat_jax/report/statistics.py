"""Tests and fits on outcomes of two models or of many tries: exact McNemar, bootstraps over items and seeds, success after N tries."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dat_jax.report import intervals

RESAMPLES = 2_000
NUMBERS = 2**22  # drawn at a time
ABSENT = np.inf  # no outcome or likelihood is infinite
Outcomes = Mapping[str, Mapping[int, bool]]  # item -> seed -> outcome


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same items: where they differ, and by how much."""

    items: int
    only_first: int  # items on which the first model's mean over seeds is higher
    only_second: int
    p: float  # exact, two-sided
    difference: float  # of the rates, first - second
    low: float  # 95 % interval, bootstrap over items and seeds
    high: float


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: a binomial test of the items on which the two models differ against 1/2.

    Source: McNemar 1947, in its exact (binomial) form. 1.0 where they never differ.
    """
    count = only_first + only_second
    if count == 0:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def paired(first: Outcomes, second: Outcomes, resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compares two models on the items that both were tried on, each over the seeds in which both were tried on it.

    In the embedded world every seed has items of its own, and few are in several. With one seed the p-value is McNemar's. With several an
    item counts for the model whose mean over the seeds is higher (a sign test over items, as the seeds of one item are no trials of their
    own). The interval resamples items and seeds, each with replacement, the same ones for both models. p is 1 and the interval -1 to 1
    where no item is shared.
    """
    both = {item: sorted(set(first[item]) & set(second[item])) for item in first if item in second}
    seeds = sorted({seed for of_item in both.values() for seed in of_item})
    shared = [item for item, of_item in both.items() if of_item]
    if not shared:
        return Paired(0, 0, 0, 1.0, 0.0, -1.0, 1.0)
    difference_NxS = np.array(
        [[int(first[item][s]) - int(second[item][s]) if s in both[item] else np.nan for s in seeds] for item in shared], float
    )
    mean_N = np.nanmean(difference_NxS, axis=1)
    only_first, only_second = int((mean_N > 0).sum()), int((mean_N < 0).sum())
    low, high = np.quantile(crossed(difference_NxS, resamples, seed), [0.025, 0.975])
    return Paired(len(shared), only_first, only_second, mcnemar(only_first, only_second), float(mean_N.mean()), float(low), float(high))


def difference(first: Outcomes, second: Outcomes) -> tuple[float, float, float]:
    """The difference of two models' rates (first - second) with its 95 % interval: that of `paired`, over items and seeds.

    Where they share items and no seed of any, there is nothing to pair the seeds by: the bootstrap is over the items alone, each with its
    mean over its own seeds.
    """
    found = paired(first, second)
    if found.items:
        return found.difference, found.low, found.high
    one, other = ({item: list(by_seed.values()) for item, by_seed in of.items()} for of in (first, second))
    return intervals.paired_difference(one, other)


def spread(outcomes: Mapping[str, Mapping[int, float]]) -> tuple[float, float]:
    """A 95 % interval of one model's rate, or mean of numbers, a bootstrap over items and seeds; where none differs it has no width."""
    seeds = sorted({seed for by_seed in outcomes.values() for seed in by_seed})
    values_NxS = np.array([[float(by_seed[s]) if s in by_seed else np.nan for s in seeds] for by_seed in outcomes.values()])
    low, high = np.quantile(crossed(values_NxS, RESAMPLES, 0), [0.025, 0.975])
    return float(low), float(high)


def crossed(values_NxS: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means over items of their means over seeds, of bootstrap samples that draw items and seeds with replacement, independently (R,).

    NaN: the item is not in that seed; a sample without any of an item's seeds leaves the item out. Items with the same values are drawn
    together: how often each kind comes is multinomial, and there are few kinds.
    """
    draw, (N, S) = np.random.default_rng(seed), values_NxS.shape
    kinds_KxS, counts_K = np.unique(np.nan_to_num(values_NxS, nan=ABSENT), axis=0, return_counts=True)
    there_KxS = kinds_KxS != ABSENT
    items_RxK = draw.multinomial(N, counts_K / N, size=resamples)
    seeds_RxS = draw.multinomial(S, np.full(S, 1 / S), size=resamples)
    drawn_RxK = seeds_RxS @ there_KxS.T
    sums_RxK = seeds_RxS @ np.where(there_KxS, kinds_KxS, 0.0).T
    items_RxK = np.where(drawn_RxK > 0, items_RxK, 0)
    total_R = np.sum(items_RxK * sums_RxK / np.maximum(drawn_RxK, 1), axis=1)
    left_R = items_RxK.sum(axis=1)
    return total_R[left_R > 0] / left_R[left_R > 0]


def ratio(sums: Sequence[float], counts: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """sum(sums) / sum(counts) with its 95 % interval, a bootstrap over items: nats per token of items of different lengths.

    Raises ValueError where there is nothing to divide by.
    """
    sums_N, counts_N = np.asarray(sums, float), np.asarray(counts, float)
    if not counts_N.sum() > 0:
        raise ValueError("ratio: the counts add up to 0; allowed: at least one item with tokens")
    N, draw, found = len(sums_N), np.random.default_rng(seed), []
    for start in range(0, resamples, block := max(1, NUMBERS // N)):
        draws = draw.multinomial(N, np.full(N, 1 / N), size=min(block, resamples - start))
        totals = draws @ counts_N
        found.append((draws @ sums_N)[totals > 0] / totals[totals > 0])
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(sums_N.sum() / counts_N.sum()), float(low), float(high)


def after_tries(broken: Sequence[Sequence[bool]], tries: int) -> float:
    """The share of behaviors broken after so many tries, in the mean over all orders of each behavior's n tries.

    1 - C(n - c, N) / C(n, N) of a behavior with c successes. Tries that are independent draws have no order, and a curve along the one that
    happened to be used is noisier. Raises ValueError for more tries than there are. Source: pass@k, Chen et al. 2107.03374.
    """
    if min(map(len, broken)) < tries:
        raise ValueError(
            f"after_tries: {tries} tries are asked for; allowed: at most {min(map(len, broken))}, those of the behavior with fewest"
        )
    return sum(1 - math.comb(len(b) - sum(b), tries) / math.comb(len(b), tries) for b in broken) / len(broken)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """-log(success) = a * tries ** -b."""

    a: float
    b: float

    def at(self, tries: float) -> float:
        """The success rate that the law gives after so many tries."""
        return math.exp(-self.a * tries**-self.b)


def power_law(points: Mapping[int, float]) -> PowerLaw | None:
    """Fits -log(success) = a * N ** -b to success by tries: least squares of log(-log success) on log N.

    Rates of 0 and 1, whose logarithm is none, are left out; None where fewer than two are left.
    Source: Hughes et al. 2412.03556, section 4, who fit in the same logarithms.
    """
    kept = [(n, rate) for n, rate in points.items() if 0 < rate < 1]
    if len(kept) < 2:
        return None
    x, y = np.log([n for n, _ in kept]), np.log([-math.log(rate) for _, rate in kept])
    slope, intercept = np.polyfit(x, y, 1)
    return PowerLaw(float(math.exp(intercept)), float(-slope))


def spaced(most: int) -> list[int]:
    """1, 2, 4, ... and `most`: numbers of tries that are even on the logarithmic axis."""
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def cohen(confusion: Mapping[tuple[Any, Any], int]) -> float | None:
    """Cohen's kappa of counts by (first label, second label); None where both gave one and the same label throughout."""
    total = sum(confusion.values())
    if not total:
        return None
    labels = {label for pair in confusion for label in pair}
    agree = sum(confusion.get((label, label), 0) for label in labels) / total
    shares = [{label: sum(n for pair, n in confusion.items() if pair[side] == label) / total for label in labels} for side in (0, 1)]
    chance = sum(shares[0][label] * shares[1][label] for label in labels)
    return None if chance == 1 else (agree - chance) / (1 - chance)
