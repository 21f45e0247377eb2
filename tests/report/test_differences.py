"""Which models of a report are compared with which."""

from dat_jax.report.breakdown import mean
from dat_jax.report.differences import paired, pairs


def outcomes(*broken):
    """Of two seeds; a number per behavior: in how many of them it was broken."""
    return {f"b{number}": {0: count > 0, 1: count > 1} for number, count in enumerate(broken)}


def test_the_share_is_the_mean_over_behaviors():
    assert mean(outcomes(0, 1, 2, 2)) == 0.625 and mean({}) == 0.0


def test_few_models_are_compared_with_the_one_before_and_many_with_the_least_broken():
    worst = {"undefended": 1.0, "cat": 0.9, "mixat": 0.2, "dat": 0.1, "lat": 0.9}
    assert pairs(["undefended", "cat", "dat"], worst) == [("dat", "cat"), ("cat", "undefended")]
    found = pairs(["undefended", "cat", "lat", "mixat", "dat"], worst)
    assert found == [("dat", "mixat"), ("dat", "lat"), ("dat", "cat"), ("dat", "undefended")]
    assert pairs(["undefended", "cat", "dat", "lat"], {}) == [("lat", "dat"), ("dat", "cat"), ("cat", "undefended")]  # nothing was attacked
    assert pairs(["a/dat", "a/cat", "b/dat", "b/cat"], worst) == [("b/dat", "a/dat"), ("b/cat", "a/cat")]


def test_the_differences_are_those_of_the_pairs():
    methods = ["undefended", "cat", "lat", "dat"]
    broken = {(method, "worst_case"): outcomes(*counts) for method, counts in zip(methods, ((2, 2, 2), (2, 2, 1), (2, 1, 1), (0, 1, 0)))}
    rows = paired(methods, broken, {})
    others = ("lat", "cat", "undefended")
    assert [(row["first"], row["second"], row["of"]) for row in rows] == [("dat", other, "worst_case") for other in others]
    assert [round(row["difference"], 6) for row in rows] == [round(-x, 6) for x in (0.5, 4 / 6, 5 / 6)]
