"""Tests and fits against scipy, closed forms and brute force."""

import itertools
import json
import math

import numpy as np
import pytest
from etils import epath

from dat_jax.data.answers import Answers
from dat_jax.report import breakdown, differences, statistics
from dat_jax.report import costs as costs_lib

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (3, 3), (2, 9), (17, 4), (0, 1)])
def test_mcnemar_is_the_exact_binomial_test(counts):
    expected = scipy_stats.binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert statistics.mcnemar(*counts) == pytest.approx(expected)


def outcomes(values):
    return {str(item): dict(enumerate(row)) for item, row in enumerate(values)}


def test_one_seed_counts_where_the_models_differ():
    first, second = outcomes([[True], [True], [True], [False], [False]]), outcomes([[False], [False], [True], [True], [False]])
    found = statistics.paired(first, second | {"elsewhere": {0: True}})
    assert (found.items, found.only_first, found.only_second, found.p, found.difference) == (5, 2, 1, 1.0, pytest.approx(0.2))
    assert found.low < 0.2 < found.high
    nothing = statistics.paired(first, {})
    assert (nothing.items, nothing.p, nothing.low, nothing.high) == (0, 1.0, -1.0, 1.0)


def test_several_seeds_are_resampled_too():
    """Items alone would give no spread where every item differs in the first seed and none in the second; seeds do."""
    first, second = outcomes([[True, False]] * 6), outcomes([[False, False]] * 6)
    found = statistics.paired(first, second)
    assert (found.only_first, found.only_second, found.difference, found.low, found.high) == (6, 0, 0.5, 0.0, 1.0)
    assert found.p == pytest.approx(2 / 2**6)
    assert statistics.paired(first, {name: {0: False} for name in first}).difference == 1.0  # over the seeds that both have


def test_a_difference_that_hangs_on_one_seed_is_not_told_apart():
    """Two seeds, one model broken throughout in the first one: over behaviors alone the interval had no width at 50 points."""
    first, second = outcomes([[True, False]] * 30), outcomes([[False, False]] * 30)
    assert statistics.difference(first, second) == (0.5, 0.0, 1.0)
    (row,) = differences.paired(["b", "a"], {("a", "direct"): first, ("b", "direct"): second}, {})
    assert (row["difference"], row["low"], row["high"]) == (0.5, 0.0, 1.0)
    elsewhere = {item: {7: False} for item in second}  # no seed in common: each item's own mean
    assert statistics.difference(first, elsewhere) == (0.5, 0.5, 0.5)
    assert statistics.difference(first, {}) == (0.0, -1.0, 1.0)


def test_the_spread_of_a_rate_is_over_items_and_seeds():
    assert statistics.spread(outcomes([[True, False]] * 30)) == (0.0, 1.0)
    assert statistics.spread(outcomes([[False, False]] * 30)) == (0.0, 0.0)  # for which a rate has Wilson's interval
    draws = np.random.default_rng(0).random(400) < 0.3
    low, high = statistics.spread({str(i): {i % 2: bool(x)} for i, x in enumerate(draws)})  # an item in one seed alone
    by_hand = scipy_stats.bootstrap((draws,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert low == pytest.approx(by_hand.low, abs=0.02) and high == pytest.approx(by_hand.high, abs=0.02)


def test_the_crossed_bootstrap_against_all_of_its_samples():
    """Two items and two seeds have 4 x 4 equally likely samples."""
    values = np.array([[0.0, 1.0], [1.0, 3.0]])
    every = [np.mean(values[np.ix_(i, s)]) for i in itertools.product((0, 1), repeat=2) for s in itertools.product((0, 1), repeat=2)]
    found = statistics.crossed(values, 40_000, 0)
    assert found.mean() == pytest.approx(np.mean(every), abs=0.02) and found.std() == pytest.approx(np.std(every), abs=0.02)


def test_nats_per_token_of_items_of_different_lengths():
    value, low, high = statistics.ratio([2.0, 30.0], [2, 10])
    assert value == pytest.approx(32 / 12) and (low, high) == (1.0, 3.0)
    assert statistics.ratio([1.0], [4]) == (0.25, 0.25, 0.25)
    generator = np.random.default_rng(0)
    sums = generator.normal(2.0, 1.0, 400)
    value, low, high = statistics.ratio(sums, np.ones(400))
    error = sums.std() / 20  # of a mean of 400
    assert low == pytest.approx(value - 1.96 * error, abs=0.2 * error) and high == pytest.approx(value + 1.96 * error, abs=0.2 * error)
    with pytest.raises(ValueError, match="add up to 0"):
        statistics.ratio([1.0], [0])


def test_success_after_tries_is_the_mean_over_all_orders():
    broken = [[True, False, False, True], [False, False, True, False], [False] * 4]
    for tries in (1, 2, 3, 4):
        orders = [np.mean([any(row[i] for i in order[:tries]) for row in broken]) for order in itertools.permutations(range(4))]
        assert statistics.after_tries(broken, tries) == pytest.approx(np.mean(orders))
    with pytest.raises(ValueError, match="at most 4"):
        statistics.after_tries(broken, 5)
    assert statistics.spaced(1) == [1] and statistics.spaced(12) == [1, 2, 4, 8, 12]


def test_the_power_law_is_found_again_and_is_scipys_fit():
    law = statistics.PowerLaw(3.0, 0.4)
    exact = {n: law.at(n) for n in (1, 2, 4, 8, 16)}
    found = statistics.power_law(exact | {32: 1.0, 64: 0.0})  # rates without a logarithm are left out
    assert (found.a, found.b) == (pytest.approx(3.0), pytest.approx(0.4)) and found.at(10_000) == pytest.approx(law.at(10_000))
    noisy = {n: rate * (1 + 0.1 * (-1) ** i) for i, (n, rate) in enumerate(exact.items())}
    fit = scipy_stats.linregress(np.log(list(noisy)), np.log([-math.log(rate) for rate in noisy.values()]))
    found = statistics.power_law(noisy)
    assert (found.a, found.b) == (pytest.approx(math.exp(fit.intercept)), pytest.approx(-fit.slope))
    assert statistics.power_law({1: 0.5, 2: 1.0}) is None


def test_kappa_by_hand():
    """Cohen's example of 1960 in its textbook form: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no give 0.4."""
    assert statistics.cohen({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}) == pytest.approx(0.4)
    assert statistics.cohen({("y", "y"): 5}) is None and statistics.cohen({}) is None


BROKEN = {
    ("a", "direct"): {"1": {0: False}, "2": {0: True}, "3": {0: False}},
    ("a", "best_of_n"): {"1": {0: True}, "2": {0: True}, "3": {0: False}},
    ("a", "worst_case"): {"1": {0: True}, "2": {0: True}, "3": {0: False}},
    ("b", "direct"): {"1": {0: False}, "2": {0: False}, "3": {0: False}},
    ("b", "worst_case"): {"1": {0: False}, "2": {0: False}, "3": {0: False}},
}


def test_rows_by_category():
    answers = [Answers(None, {"attack": "direct", "categories": {"1": "x", "2": "x", "3": "y"}}, []), Answers(None, {}, [])]
    rows = {(r["category"], r["method"], r["attack"]): (r["behaviors"], r["rate"]) for r in breakdown.categories(BROKEN, answers)}
    assert rows["x", "a", "direct"] == (2, 0.5) and rows["x", "a", "worst_case"] == (2, 1.0) and rows["y", "a", "best_of_n"] == (1, 0.0)
    assert breakdown.categories(BROKEN, answers[1:]) == []


def test_paired_rows_and_holm():
    rows = breakdown.paired_tests(["a", "b"], BROKEN, {("a", "over_refusal"): {"p": {0: True}}, ("b", "over_refusal"): {"p": {0: False}}})
    assert [(r["first"], r["second"], r["of"], r["only_first"], r["only_second"]) for r in rows] == [
        ("b", "a", "direct", 0, 1), ("b", "a", "over_refusal", 0, 1)
    ]  # fmt: skip
    assert rows[1]["p_holm"] is None and rows[0]["p_holm"] == 1.0  # the worst cases are over other attacks
    many = {(m, f"k{k}"): {str(i): {0: m == "a" and i < n} for i in range(12)} for m in "ab" for k, n in enumerate((12, 7, 3))}
    found = {r["of"]: (r["p"], r["p_holm"]) for r in breakdown.paired_tests(["a", "b"], many, {})}
    p = [2 / 2**12, 2 / 2**7, 2 / 2**3]
    assert found == {f"k{k}": (pytest.approx(x), pytest.approx(y)) for k, (x, y) in enumerate(zip(p, [3 * p[0], 2 * p[1], p[2]]))}


def test_rows_over_tries_and_against_compute():
    tries = {"best_of_n": {("a", 0): [[False] * 7 + [True], [True] + [False] * 7, [False] * 8], ("b", 0): [[False] * 8]}}
    costs = [
        {"method": "a", "attack": "best_of_n", "seed": 0, "behaviors": 3, "answers": 24, "whole_flops": 240.0, "seconds": 6.0},
        {"method": "a", "attack": "direct", "seed": 0, "behaviors": 3, "answers": 3, "whole_flops": 30.0, "seconds": 3.0},
    ]
    row, never = breakdown.over_tries(tries, costs)
    assert [(p["tries"], p["rate"], p["flops"]) for p in row["points"]] == [
        (n, pytest.approx(2 / 3 * n / 8), 10.0 * n) for n in (1, 2, 4, 8)
    ]
    early = statistics.power_law({1: 1 / 12, 2: 1 / 6})
    assert row["fitted_to"] == 2 and row["forecast"] == pytest.approx(early.at(8)) and row["error"] == pytest.approx(early.at(8) - 2 / 3)
    assert never["a"] is never["forecast"] is never["error"] is None and never["observed"] == 0.0
    cheap, dear = breakdown.against_compute(BROKEN, costs)
    assert (cheap["attack"], cheap["flops"], cheap["rate"], cheap["worst_so_far"]) == (
        "direct",
        10.0,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    assert (dear["total_flops"], dear["seconds"], dear["worst_so_far"]) == (90.0, 2.0, pytest.approx(2 / 3))


def test_an_attacks_cost_has_drawing_rewriting_and_judging(tmp_path):
    """Two behaviors drawn for, of which one is answered; a judge that is a model reads two answers, one of them twice."""
    folder = tmp_path / "seed_0" / "infilling"
    folder.mkdir(parents=True)
    (folder / "cost.json").write_text(json.dumps({"flops": 80.0, "seconds": 6.0, "samples": 6.0, "tokens": 1.0}))
    (folder / "made_with.json").write_text(json.dumps({"samples": 3}))
    cost = {"answers": 3, "flops": 30.0, "seconds": 1.0}
    about = {"done": {"1": ""}, "cost": cost | {"rewriter_flops": 5.0, "judge_flops": 7.0, "rewriter_calls": 2}}
    texts = ("no", "no", "yes")
    lines = [{"behavior": "1", "prompt": f"p{n}", "response": text, "flops": 100.0} for n, text in enumerate(texts)]
    files = [
        (Answers(None, about | {"attack": "infilling"}, lines), lines),
        (Answers(None, {"attack": "direct", "done": {"1": ""}, "cost": cost}, lines), []),  # not judged yet
        (Answers(None, {"attack": "old", "done": {}}, []), []),  # says no cost
    ]
    drawn, direct = costs_lib.of_attacks({("a", 0): files}, {("a", 0): epath.Path(tmp_path / "seed_0" / "answers" / "a")})
    assert (drawn["drawing_flops"], drawn["drawing_seconds"], drawn["scoring_flops"], drawn["seconds"]) == (40.0, 3.0, 200.0, 4.0)
    assert drawn["flops"] == 30.0 and drawn["whole_flops"] == 30 + 40 + 5 + 7 + 200
    assert direct["whole_flops"] == direct["flops"] == 30.0 and "drawing_flops" not in direct
    (row,) = breakdown.against_compute({("a", "infilling"): {"1": {0: True}}}, [drawn, direct])
    assert (row["flops"], row["seconds"], row["total_flops"]) == (282.0, 4.0, 282.0)


def test_harmbenchs_average_beside_the_worst_case():
    def line(behavior, label):
        return {"behavior": behavior, "label": label}

    lines = {("a", 0): {"direct": [line("1", "refuse"), line("2", "comply")],
                        "best_of_n": [line("1", "comply"), *[line("1", "refuse")] * 3, *[line("2", "refuse")] * 4]}}  # fmt: skip
    (row,) = breakdown.averages(lines, {("a", "worst_case"): {"1": {0: True}, "2": {0: True}}})
    assert row["attempts"] == {"direct": 0.5, "best_of_n": 0.125} and row["average"] == 0.3125
    assert (row["worst_case"], row["worst_case_text"], row["attacks"]) == (1.0, None, 2)


def test_likelihoods_and_accuracies():
    chats = [{"id": str(i), "nll": 2.0 * n, "kl": None if i else 0.5, "tokens": n} for i, n in enumerate((1, 3))]
    harmful = [{"behavior": "b", "nll": 6.0, "tokens": 2}, {"behavior": "b", "nll": 0.0, "tokens": 1}]
    answers = [{"id": "q", "acc": True, "acc_norm": False, "acc_bytes": True}]

    def file(about, lines):
        done = {line.get("behavior") or line["id"]: "" for line in lines}
        return Answers(None, about | {"done": done, "asked": list(done)}, lines)

    files = [file({"measure": "chats"}, chats), file({"measure": "harmful"}, harmful), file({"measure": "task", "task": "arc"}, answers)]
    rows = {row["measure"]: (row["items"], row["tokens"], row["value"]) for row in breakdown.likelihoods({("a", 0): files})}
    assert rows == {"heldout_nll": (2, 4, 2.0), "heldout_kl": (1, 1, 0.5), "harmful_nll": (1, 3, 2.0)}
    assert breakdown.accuracies(files) == {"acc:arc": {"q": True}, "acc_norm:arc": {"q": False}, "acc_bytes:arc": {"q": True}}


def test_items_of_some_seeds_alone_count_there():
    """Two worlds without a common item: the report of several seeds of the embedded world had compared nothing."""
    first = {"a": {0: True}, "b": {0: True}, "c": {1: True}, "d": {0: True, 1: False}}
    second = {"a": {0: False}, "b": {0: False}, "c": {1: False}, "d": {0: False, 1: False}, "e": {1: True}}
    found = statistics.paired(first, second)
    assert (found.items, found.only_first, found.only_second, found.p) == (4, 4, 0, 0.125)
    assert found.difference == pytest.approx((1 + 1 + 1 + 0.5) / 4) and 0 <= found.low < found.difference < found.high <= 1


def test_the_bootstrap_with_missing_outcomes_against_all_of_its_samples():
    values = np.array([[1.0, np.nan], [0.0, -1.0]])
    means = []
    for items in itertools.product(range(2), repeat=2):
        for seeds in itertools.product(range(2), repeat=2):
            of_items = [values[item, list(seeds)] for item in items]
            kept = [np.nanmean(of_item) for of_item in of_items if not np.isnan(of_item).all()]
            means += [np.mean(kept)] if kept else []
    found = statistics.crossed(values, 40_000, 0)
    assert found.mean() == pytest.approx(np.mean(means), abs=0.01) and found.std() == pytest.approx(np.std(means), abs=0.01)
