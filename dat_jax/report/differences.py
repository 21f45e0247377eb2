"""Which models are compared, and by how much each worst case and each utility measure differs between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.report import statistics
from dat_jax.report.breakdown import Rates, mean
from dat_jax.report.wording import WORST, base

FEW = 3  # models that are compared each with the one before it


def paired(methods: Sequence[str], broken: Rates, counted: Rates) -> list[dict[str, Any]]:
    """What changes in the worst case and in each utility measure between the models of each pair, paired over behaviors or prompts.

    The worst cases of two methods that other attacks were tried on are not compared.
    """
    comparisons = []
    tried = {method: {name for m, name in broken if m == method and not name.startswith(WORST)} for method in methods}
    for first, second in pairs(methods, {method: mean(broken[method, WORST]) for method in methods if (method, WORST) in broken}):
        for table in (broken, counted):
            for name in [name for method, name in table if method == first and (second, name) in table]:
                if name.startswith(WORST) and tried[first] != tried[second]:
                    continue
                difference, low, high = statistics.difference(table[first, name], table[second, name])
                comparisons.append({"first": first, "second": second, "of": name, "difference": difference, "low": low, "high": high})
    return comparisons


def pairs(methods: Sequence[str], worst: Mapping[str, float]) -> list[tuple[str, str]]:
    """Which models are compared; worst: the share of behaviors that any attack breaks, of those that were attacked.

    Between workdirs those of one method. Else, of up to three every one with the one before it, the last one's first. Of more the least
    broken one with each of the others.
    """
    first = {base(method): method for method in reversed(methods)}
    if alike := [(method, first[base(method)]) for method in methods if first[base(method)] != method]:
        return alike
    if len(methods) > FEW and worst:
        best = min(reversed(methods), key=lambda method: worst.get(method, 2.0))
        return [(best, method) for method in reversed(methods) if method != best]
    return list(reversed(list(zip(methods[1:], methods[:-1]))))
