"""What the numbers say, in sentences that do not say more than the intervals allow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dat_jax.methods import METHODS
from dat_jax.report import comparison
from dat_jax.report.comparison import Point
from dat_jax.report.results import COMPARED, Results
from dat_jax.report.wording import WORST, WORST_TEXT, change, is_worst, measure_title, title

Rates = tuple[float, float, float]  # rate, low, high
USELESS = 0.5  # share of harmless prompts beyond whose refusal a model's robustness says nothing
SMALL = 0.02  # of the harmless prompts: a model that surely refuses no more than this on top is compared as it is


def headline(results: Results, points: Sequence[Point] = ()) -> str:
    """The finding in one sentence: the most robust model against the next one, and whether both refuse equally many harmless prompts.

    points: of several workdirs; where two lines of them reach the same over-refusal, robustness is compared there.
    """
    ranked = sorted(
        (m for m in results.methods if (m, WORST) in results.attack_rates),
        key=lambda m: (results.attack_rates[m, WORST][0], m in METHODS and not METHODS[m].trains, refused(results, m)),
    )
    if useful := [method for method in ranked if refused(results, method) <= USELESS]:
        mute = [f"{title(m)} (refuses {100 * refused(results, m):.0f} %)" for m in ranked if m not in useful]
        left_out = f"; left out, as a model that refuses everything is broken by nothing: {', '.join(mute)}" if mute else ""
        return _headline(results, points, useful) + left_out
    return _headline(results, points, ranked)


def _headline(results: Results, points: Sequence[Point], ranked: Sequence[str]) -> str:
    if not ranked:
        return "No attack is judged yet"
    attacks = sum(not is_worst(attack) for attack in results.attacks)
    behaviors = max(row["behaviors"] for row in results.rows)
    asked = f"{behaviors} behaviors by at least one of {attacks} attacks" if attacks > 1 else f"{behaviors} behaviors"
    lead = ranked[0]
    rate = results.attack_rates[lead, WORST]
    measure = refusals(results)
    if len(ranked) == 1:
        cost = _cost(results, lead)
        return f"{title(lead)} is broken on {_percent(rate)} of {asked} (95 % interval {_span(rate)}){cost}"
    if equal := _at_equal(results, points, measure):
        return equal
    other = ranked[1]
    theirs = results.attack_rates[other, WORST]
    alike = told(results, lead, other, WORST) == 0
    robust = f"{title(lead)} is broken on {_percent(rate)} of {asked}, {title(other)} on {_percent(theirs)}"
    robust += ", which does not tell them apart" if alike else ""
    if measure is None or (lead, measure) not in results.utility_rates or (other, measure) not in results.utility_rates:
        return f"{robust}; how many harmless prompts they refuse was not measured"
    mine, of_other = (_percent(results.utility_rates[m, measure]) for m in (lead, other))
    said = told(results, lead, other, measure)
    more = _difference(results, lead, other, measure)
    if said > 0 and more and more[2] <= SMALL:
        points_, most = (f"{100 * value:.1f}" for value in (more[0], more[2]))
        return f"{robust}; {title(lead)} refuses {points_} points more of the harmless prompts ({mine} against {of_other}), at most {most}"
    if said > 0:
        return f"{robust}, but {title(lead)} also refuses more harmless prompts ({mine} against {of_other}), so this is no fair comparison"
    if said < 0:
        return f"{robust}, and {title(lead)} refuses fewer harmless prompts ({mine} against {of_other})"
    refusing = f"how often they refuse harmless prompts ({mine} and {of_other})"
    return f"{robust}, and neither does {refusing}" if alike else f"{robust}; {refusing} does not tell them apart"


def refusals(results: Results) -> str | None:
    """The measure of what robustness costs: over-refusal, or where no borderline prompts were given the benign prompts refused."""
    measured = {name for _, name in results.utility_rates}
    return next((name for name in ("over_refusal", "benign_refusal") if name in measured), None)


def told(results: Results, first: str, second: str, of: str) -> int:
    """1 where the first model's rate is higher, -1 where it is lower, 0 where they are not told apart.

    By the paired interval where there is one, and otherwise by whether the two intervals leave each other out, which says less.
    """
    if found := _difference(results, first, second, of):
        return 1 if found[1] > 0 else -1 if found[2] < 0 else 0
    table = results.attack_rates if is_worst(of) else results.utility_rates
    (_, low, high), (_, other_low, other_high) = table[first, of], table[second, of]
    return 1 if low > other_high else -1 if high < other_low else 0


def _difference(results: Results, first: str, second: str, of: str) -> Rates | None:
    """The paired difference first - second with its interval; None where the two were not compared."""
    for item in results.comparisons:
        if item["of"] == of and (item["first"], item["second"]) == (first, second):
            return item["difference"], item["low"], item["high"]
        if item["of"] == of and (item["first"], item["second"]) == (second, first):
            return -item["difference"], -item["high"], -item["low"]
    return None


def _at_equal(results: Results, points: Sequence[Point], measure: str | None) -> str:
    """The two most robust lines of points at an over-refusal that both reach, read between their points; "" where there are no two."""
    read: list[tuple[float, str, float]] = []
    if measure is None:
        return ""
    lines = comparison.curves(points, measure)
    ends = [[comparison.at(line[i], measure) or 0.0 for i in (0, -1)] for line in lines]
    if len(lines) < 2 or max(low for low, _ in ends) > min(high for _, high in ends):
        return ""
    middle = (max(low for low, _ in ends) + min(high for _, high in ends)) / 2
    for line in lines:
        x, y = [comparison.at(p, measure) or 0.0 for p in line], [p.broken[0] for p in line]
        read.append((float(np.interp(middle, x, y)), line[0].method, middle))
    (best, lead, _), (next_, other, _), *_ = sorted(read)
    name, name_ = (title(method.rpartition("/")[2]) for method in (lead, other))
    return (
        f"At an over-refusal of {100 * middle:.0f} %, read between the points of the settings, {name} is broken on {100 * best:.0f} % "
        f"of the behaviors and {name_} on {100 * next_:.0f} %"
    )


def findings(results: Results) -> list[str]:
    """What the numbers say, sentence by sentence."""
    sentences = [
        f"{title(method)}: {100 * found[0]:.1f} % of the behaviors are broken by at least one attack (95 % interval "
        f"{100 * found[1]:.1f} to {100 * found[2]:.1f})."
        for method in results.methods
        if (found := results.attack_rates.get((method, WORST)))
    ]
    for item in results.comparisons:
        if item["of"] in COMPARED:
            name = measure_title(item["of"]).lower()
            sentences.append(f"{title(item['first'])} against {title(item['second'])}, {name}: {change(item)}.")
    return sentences


def summary(results: Results) -> list[str]:
    """The numbers that matter, as lines of a table: two of attack success and two of usefulness, per method."""
    width = max([14, *(len(title(method)) + 2 for method in results.methods)])
    lines = [f"{'':<42}" + "".join(f"{title(method):>{width}}" for method in results.methods)]
    groups: list[tuple[Any, tuple[str, ...]]] = [
        (results.attack_rates, (WORST_TEXT, WORST)),
        (results.utility_rates, ("over_refusal", "exact_utility")),
    ]
    for rates, names in groups:
        for name in [name for name in names if any((method, name) in rates for method in results.methods)]:
            cells = [f"{100 * rates[method, name][0]:.0f} %" if (method, name) in rates else "-" for method in results.methods]
            lines.append(f"{measure_title(name):<42}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines


def refused(results: Results, method: str) -> float:
    """The share of harmless prompts that a model refuses; 0 where it was not measured."""
    measure = refusals(results)
    return results.utility_rates.get((method, measure or ""), (0.0, 0.0, 0.0))[0]


def _cost(results: Results, method: str) -> str:
    measure = refusals(results)
    if measure is None or (method, measure) not in results.utility_rates:
        return "; how many harmless prompts it refuses was not measured"
    rates = results.utility_rates[method, measure]
    return f", and refuses {_percent(rates)} of the harmless prompts ({_span(rates)})"


def _percent(rates: Rates) -> str:
    return f"{100 * rates[0]:.0f} %" if rates[0] >= 0.0995 or rates[0] == 0 else f"{100 * rates[0]:.1f} %"


def _span(rates: Rates) -> str:
    return f"{100 * rates[1]:.0f} to {100 * rates[2]:.0f} %"
