"""The names of attacks, measures and numbers as readers write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.evaluation import utility

WORST = "worst_case"  # broken by any attack
WORST_TEXT = "worst_case:text"  # broken by any attack that can be typed: without perturbed embeddings


def title(method: str) -> str:
    """A method's name as readers write it."""
    return method.upper() if method in ("cat", "dat") else method.capitalize()


def label(name: str, held_out: Sequence[str] = ()) -> str:
    """An attack's or measure's name in words; held-out forms carry a star."""
    if name in (WORST, WORST_TEXT) or name.partition(":")[0] in utility.MEASURES:
        return measure_title(name)
    kind, _, form = name.partition(":")
    words = {"direct": "Direct request", "rewrite": "Rewrite", "best_of_n": "Best of N", "prefill": "Prefilled answer"}
    words |= {"prefill+rewrite": "Prefilled answer to rewrite", "embedding": "Embedding attack"}
    words |= {"embedding+rewrite": "Embedding attack on rewrite"}
    return words.get(kind, kind) + (f": {form.replace('_', ' ')}{' *' if form in held_out else ''}" if form else "")


def measure_title(name: str) -> str:
    """A measure's name in words."""
    kind, _, form = name.partition(":")
    if kind == "over_refusal" and form:
        return form.replace("_", " ")
    return {
        WORST: "Worst case over all attacks",
        WORST_TEXT: "Worst case over text attacks",
        "compliance": "Benign prompts answered",
        "benign_refusal": "Benign prompts refused",
        "exact_utility": "Benign prompts answered exactly",
        "over_refusal": "Borderline prompts refused (over-refusal)",
        "borderline_compliance": "Borderline prompts answered",
        "unsafe_refusal": "Unsafe contrasts refused",
    }[name]


def change(item: Mapping[str, Any]) -> str:
    """A comparison in words: lower or higher only where the interval leaves out zero."""
    told = "lower" if item["high"] < 0 else "higher" if item["low"] > 0 else "not told apart"
    difference, low, high = (f"{100 * item[key]:+.1f}".replace("-", "\u2212") for key in ("difference", "low", "high"))
    return f"{told} ({difference} points, {low} to {high})"


def cost_items(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The entries of a cost record but the seed, as readable texts."""

    def value(number: Any) -> str:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return str(number)
        return f"{number:.2e}".replace("e+", "e") if abs(number) >= 10**7 else f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

    return [(key.replace("_", " "), value(number)) for key, number in cost.items() if key != "seed"]
