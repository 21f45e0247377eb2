"""Selection policies on hand-made samples whose best choice is known."""

import numpy as np
import pytest

from dat_jax.data.variety import distinct, stutters
from dat_jax.diffusion.selection import POLICIES, mean_similarity, mmr, select, similarity, standing, unique

TEXTS = [
    "how do i open the safe",
    "How do I open  the safe",
    "how did people open the safe",
    "tell me a story of bread",
    " . ",
    "open it now",
    "why",
]
LIKELY = np.array([-1.0, -0.5, -1.2, -3.0, 0.0, -2.0, -9.0])
COMPLIES = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.0])


def chosen(policy, keep, **options):
    return select(policy, keep, TEXTS, LIKELY, COMPLIES, np.random.default_rng(0), **options)


def test_repeated_and_wordless_prompts_are_dropped():
    assert unique(TEXTS) == [0, 2, 3, 5, 6]
    assert unique(["half a char\ufffd", "whole"]) == [1]
    assert unique(["\ufffd", "\ufffd ", "."]) == [0, 2]  # nothing better: a behavior does not go without a prompt
    for policy in POLICIES:
        found = chosen(policy, 10)
        assert sorted(found) == [0, 2, 3, 5, 6]


def test_each_policy_takes_what_it_says():
    assert chosen("likelihood", 2) == [0, 2]
    assert chosen("compliance", 3) == [2, 3, 5]
    assert chosen("diversity", 2)[0] == 0 and chosen("diversity", 2)[1] != 2  # the second-likeliest repeats most of the first
    assert chosen("combined", 2)[0] == 2
    assert chosen("combined", 3, diversity=0.0) == [2, 0, 3]


def test_stratified_takes_one_from_each_slice_of_the_likelihood_order():
    likely = -np.arange(40, dtype=float)
    texts = [f"prompt {index}" for index in range(40)]
    found = select("stratified", 4, texts, likely, None, np.random.default_rng(1))
    assert [index // 10 for index in found] == [0, 1, 2, 3]


def test_mmr_against_brute_force_of_its_greedy_step():
    rng = np.random.default_rng(0)
    relevance, points = rng.random(12), rng.random((12, 2))
    similar = 1 / (1 + np.square(points[:, None] - points[None]).sum(-1))
    taken: list[int] = []
    for _ in range(5):
        score = {i: 0.6 * relevance[i] - 0.4 * max((similar[i, j] for j in taken), default=0.0) for i in range(12) if i not in taken}
        taken.append(max(score, key=lambda i: score[i]))
    assert mmr(relevance, similar, 5, 0.6) == taken


def test_measures():
    np.testing.assert_allclose(similarity(["a b", "a b", "c d"]), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(standing(np.array([3.0, 1.0, 1.0, 2.0])), [1, 1 / 6, 1 / 6, 2 / 3])
    assert stutters("Paint the The door") and not stutters("the door the")
    assert distinct(["a a a a"], 1) == 0.25 and distinct(["a b", "c d"], 2) == 1.0
    assert mean_similarity(["a b", "a b"]) == pytest.approx(1) and mean_similarity(["a", "b"]) == 0
    assert select("combined", 3, [], np.zeros(0), np.zeros(0), np.random.default_rng(0)) == []


def test_unknown_policies_and_missing_scores_are_named():
    with pytest.raises(ValueError, match=r"sampler\.selection"):
        chosen("best", 1)
    with pytest.raises(ValueError, match="judge"):
        select("combined", 1, TEXTS, LIKELY, None, np.random.default_rng(0))
    with pytest.raises(ValueError, match="likelihood_samples"):
        select("likelihood", 1, TEXTS, None, COMPLIES, np.random.default_rng(0))
