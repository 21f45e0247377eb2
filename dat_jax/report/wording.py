"""The names of methods, attacks, measures and numbers as readers write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import SURFACES
from dat_jax.methods import METHODS
from dat_jax.report.measures import MEASURES, TASKS

WORST = "worst_case"  # broken by any attack
WORST_TEXT = "worst_case:text"  # broken by any attack that can be typed, prefilled answers included
ACCESS = {
    "text": "What can be typed",
    "prefill": "Prefilled answers",
    "embedding": "Perturbed embeddings",
    "latent": "Perturbed hidden states",
    "weights": "Changed weights",
}  # surface -> the access in words


def is_worst(attack: str) -> bool:
    """Whether a row of the table is a worst case over attacks."""
    return attack.partition(":")[0] == WORST


def worst_cases(surface: str) -> tuple[str, ...]:
    """The worst cases that an attack on this surface counts in."""
    return (*([WORST_TEXT] if surface == "prefill" else []), f"{WORST}:{surface}", WORST)


def base(method: str) -> str:
    """The name of a model without the workdir that a comparison puts in front of it: WORKDIR/NAME."""
    return method.rpartition("/")[2]


def workdir_of(method: str) -> str:
    """The workdir that a comparison names a model by; "" in the report of one workdir."""
    return method.rpartition("/")[0]


def title(method: str) -> str:
    """A method's name as readers write it; other models are called by their own names. A comparison adds the workdir."""
    name, workdir = base(method), workdir_of(method)
    shown = METHODS[name].title if name in METHODS else name
    return f"{shown} ({workdir})" if workdir else shown


def attack_order(attack: str) -> tuple[int, str]:
    """Where an attack stands in a table: in the order of ATTACKS, then others, then the worst cases, the one over all attacks last."""
    kind, _, form = attack.partition(":")
    if kind == WORST:
        return len(ATTACKS) + 1 + (SURFACES.index(form) if form in SURFACES else len(SURFACES)), ""
    return (list(ATTACKS).index(kind) if kind in ATTACKS else len(ATTACKS)), form


def label(name: str, held_out: Sequence[str] = ()) -> str:
    """An attack's or measure's name in words; held-out forms carry a star."""
    kind, _, form = name.partition(":")
    if kind == WORST or kind in MEASURES or kind in TASKS:
        return measure_title(name)
    shown = ATTACKS[kind].title if kind in ATTACKS else kind.replace("_", " ").capitalize()
    return shown + (f": {form.replace('_', ' ')}{' *' if form in held_out else ''}" if form else "")


def measure_title(name: str) -> str:
    """A measure's name in words."""
    kind, _, form = name.partition(":")
    if kind == "over_refusal" and form:
        return form.replace("_", " ")
    if kind in TASKS:
        return f"{form}: {TASKS[kind]}"
    if kind == WORST:
        return {
            "": "Worst case over all attacks",
            "text": "Worst case over text attacks",
            "prefill": "Worst case over prefilled answers",
            "embedding": "Worst case over embedding attacks",
            "latent": "Worst case over latent attacks",
            "weights": "Worst case over changed weights",
        }[form]
    return {
        "compliance": "Benign prompts answered",
        "benign_refusal": "Benign prompts refused",
        "exact_utility": "Benign prompts answered exactly",
        "over_refusal": "Borderline prompts refused (over-refusal)",
        "borderline_compliance": "Borderline prompts answered",
        "unsafe_refusal": "Unsafe contrasts refused",
        "direct_refusal": "Direct requests refused",
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

    return [(key.replace("_", " "), value(number)) for key, number in cost.items() if key not in ("seed", "workdir")]


def agreement_sentence(item: Mapping[str, Any]) -> str:
    """How far two judges agree, in a sentence."""
    kappa = "not defined, as both gave one label throughout" if item["kappa"] is None else f"{item['kappa']:.2f}"
    return (
        f"{item['first']} and {item['second']} agree on {100 * item['agree']:.0f} % of {item['answers']:,} answers "
        f"(compliance or not; Cohen's kappa {kappa})."
    )
