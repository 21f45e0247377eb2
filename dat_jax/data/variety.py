"""How varied a list of prompts is, by their words."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-case words and single marks of a text."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different word n-grams as a share of all of them (1: nothing is repeated)."""
    counts = Counter(tuple(found[i : i + n]) for found in map(words, texts) for i in range(len(found) - n + 1))
    return len(counts) / max(sum(counts.values()), 1)


def stutters(text: str) -> bool:
    """Whether a word stands twice in a row."""
    return any(a == b for a, b in itertools.pairwise(text.lower().split()))
