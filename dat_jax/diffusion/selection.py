"""Which of a behavior's sampled prompts are trained on: policies over likelihood, compliance of the target and diversity.

Pure functions on arrays of the N samples of one behavior; every tie goes to the earlier sample, so a selection is reproducible.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dat_jax.data.variety import words

Floats = NDArray[np.float64]
POLICIES = ("random", "likelihood", "stratified", "compliance", "diversity", "combined")
LIKELY = ("likelihood", "stratified", "diversity", "combined")  # those that need likelihoods
JUDGED = ("compliance", "combined")  # those that need to know whether the target complies


def ngrams(text: str, longest: int = 2) -> set[tuple[str, ...]]:
    """The set of word n-grams of length 1 to `longest`."""
    found = words(text)
    return {tuple(found[start : start + n]) for n in range(1, longest + 1) for start in range(len(found) - n + 1)}


def similarity(texts: Sequence[str]) -> Floats:
    """Jaccard similarity (N, N) of the texts' word 1- and 2-grams, from 0 to 1."""
    grams = [ngrams(text) for text in texts]
    index = {gram: column for column, gram in enumerate(sorted(set().union(*grams)))} if grams else {}
    member = np.zeros((len(texts), max(len(index), 1)))
    for row, found in enumerate(grams):
        member[row, [index[gram] for gram in found]] = 1.0
    both, size = member @ member.T, member.sum(axis=1)
    return both / np.maximum(size[:, None] + size[None] - both, 1.0)


def unique(texts: Sequence[str]) -> list[int]:
    """Indices of the texts that have a word and no broken character, and do not repeat an earlier one but for spaces and case.

    Where no text is like that, of all that do not repeat an earlier one: a behavior does not go without a prompt.
    """
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        seen.setdefault(" ".join(words(text)), index)
    whole = [i for text, i in seen.items() if "\ufffd" not in text and any(word[0].isalnum() for word in text.split())]
    return whole or list(seen.values())


def standing(values: Floats) -> Floats:
    """Fractional rank from 0 (lowest) to 1 (highest), equal values sharing the mean of theirs."""
    if len(values) < 2:
        return np.ones(len(values))
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return (below + (equal - 1) / 2) / (len(values) - 1)


def mmr(relevance: Floats, similar: Floats, keep: int, weight: float) -> list[int]:
    """Maximal marginal relevance: takes, one by one, the best weight * relevance - (1 - weight) * similarity to those taken."""
    taken: list[int] = []
    closest = np.zeros(len(relevance))
    for _ in range(min(keep, len(relevance))):
        score = weight * relevance - (1 - weight) * closest
        score[taken] = -np.inf
        taken.append(int(np.argmax(score)))
        closest = np.maximum(closest, similar[taken[-1]])
    return taken


def select(
    policy: str,
    keep: int,
    texts: Sequence[str],
    log_likelihood_per_token: Floats | None,
    compliance: Floats | None,
    rng: np.random.Generator,
    diversity: float = 0.5,
) -> list[int]:
    """Indices of at most `keep` different prompts of one behavior, best first.

      random      any                                       likelihood  highest log-likelihood per token
      stratified  one at random from each of `keep` equal slices of the likelihood order: the proposal's spread, without its repetitions
      compliance  what the target complies with most, ties by likelihood
      diversity   MMR with likelihood as the relevance      combined    MMR with the mean standing in likelihood and compliance
    `diversity` is the weight of dissimilarity in MMR. Raises ValueError for an unknown policy or one whose scores are missing.
    """
    if policy not in POLICIES:
        raise ValueError(f"config.sampler.selection is {policy!r}; allowed: {', '.join(POLICIES)}")
    if not 0 <= diversity <= 1:
        raise ValueError(f"config.sampler.diversity is {diversity}; allowed: a share from 0 to 1")
    missing = [
        name
        for name, values, needed in (
            ("likelihoods (sampler.likelihood_samples)", log_likelihood_per_token, policy in LIKELY),
            ("a judge of the target's compliance", compliance, policy in JUDGED),
        )
        if needed and values is None
    ]
    if missing:
        raise ValueError(f"config.sampler.selection is {policy!r}, which needs {' and '.join(missing)}")
    kept = unique(texts)
    likely = np.zeros(len(texts)) if log_likelihood_per_token is None else np.asarray(log_likelihood_per_token, np.float64)
    judged = np.zeros(len(texts)) if compliance is None else np.asarray(compliance, np.float64)
    likely, judged = likely[kept], judged[kept]
    if policy == "random":
        chosen = list(rng.permutation(len(kept))[:keep])
    elif policy == "likelihood":
        chosen = list(np.argsort(-likely, kind="stable")[:keep])
    elif policy == "stratified":
        slices = np.array_split(np.argsort(-likely, kind="stable"), min(keep, max(len(kept), 1)))
        chosen = [rng.choice(part) for part in slices if len(part)]
    elif policy == "compliance":
        chosen = list(np.lexsort((-likely, -judged))[:keep])
    else:
        relevance = standing(likely)
        if policy == "combined":
            relevance = (relevance + standing(judged)) / 2
        chosen = mmr(relevance, similarity([texts[index] for index in kept]), keep, 1 - diversity)
    return [kept[int(index)] for index in chosen]


def mean_similarity(texts: Sequence[str]) -> float:
    """Mean similarity of two different samples: 0 when no two share a word, 1 when all are the same."""
    count = len(texts)
    return float((similarity(texts).sum() - count) / max(count * (count - 1), 1)) if count else 0.0
