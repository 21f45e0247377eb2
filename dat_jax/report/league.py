"""The league: one row per model, with what breaks it, what it still answers and what it cost; and robustness at fixed over-refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dat_jax.report import comparison
from dat_jax.report.costs import flops, training_costs
from dat_jax.report.finding import refusals, refused
from dat_jax.report.html import percent, span
from dat_jax.report.table import Table
from dat_jax.report.wording import WORST, is_worst, measure_title, title, workdir_of

if TYPE_CHECKING:
    from dat_jax.report.comparison import Point
    from dat_jax.report.results import Results

FEWEST = 3  # models; of two the other tables say it
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # of harmless prompts refused, at which lines of points are read
Rates = tuple[float, float, float]


def league(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """One row per model, the least broken first: worst case per access, utility, over-refusal, operations per step and in all."""
    if len(results.methods) < FEWEST:
        return
    worst = [attack for attack in results.attacks if is_worst(attack)]
    measured = {name for _, name in results.utility_rates}
    harmless = [name for name in ("exact_utility", "compliance", refusals(results)) if name in measured]
    spent, taken = flops(results), {(cost["method"], cost["seed"]): cost["steps"] for cost in training_costs(results)}

    def place(method: str) -> tuple[float, float]:
        return results.attack_rates.get((method, WORST), (2.0, 2.0, 2.0))[0], refused(results, method)

    rows = []
    for method in sorted(results.methods, key=place):
        own = [row for row in spent if row["method"] == method and (method, row["seed"]) in taken]
        steps = [taken[method, row["seed"]] for row in own]
        each = np.mean([row["training"] / count for row, count in zip(own, steps)]) if own else None
        total = np.mean([row["total"] for row in own]) if own else None
        rows.append(
            [title(method), *(_rates(results.attack_rates.get((method, attack))) for attack in worst),
             *(_rates(results.utility_rates.get((method, name))) for name in harmless),
             f"{np.mean(steps):,.0f}" if own else "-", *("-" if found is None else f"{found / 1e12:,.3g}" for found in (each, total))]
        )  # fmt: skip
    head = ["", *map(measure_title, worst), *map(str, map(measure_title, harmless)), "Steps", "TFLOP per step", "TFLOP in all"]
    seeds = len(results.seeds)
    caption = f"The least broken model first, with 95 % intervals over behaviors or prompts and {seeds} seed{'s' * (seeds > 1)}. "
    caption += "Operations by formula, per seed; those in all include the sampling of prompts. A step has one update of the weights, "
    caption += "and LAT's as many as methods.lat.updates says. Read robustness and over-refusal together."
    yield Table("findings", "League", head, rows, caption, folded=True)


def at_fixed_refusals(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What breaks a method at given over-refusals, read between its points in several workdirs; no value beyond the points."""
    measure = refusals(results)
    lines = comparison.curves(points, measure) if measure else []
    rows = []
    for line in lines:
        x = [comparison.at(point, measure or "") or 0.0 for point in line]
        columns = [[point.broken[part] for point in line] for part in range(3)]
        cells = [_rates(_read(share, x, columns)) for share in SHARES]
        names = ", ".join(dict.fromkeys(workdir_of(point.method) for point in line))
        rows.append([title(line[0].method.rpartition("/")[2]), names, f"{percent(x[0])} to {percent(x[-1])}", *cells])
    head = ["", "Workdirs", "Refuses", *(f"Broken where {percent(share)} are refused" for share in SHARES)]
    caption = "Broken by any attack, read on the straight line between two workdirs' points, and so are the ends of the intervals."
    yield Table("findings", "Robustness at fixed over-refusals", head, rows, caption)


def _read(share: float, x: Sequence[float], columns: Sequence[Sequence[float]]) -> Rates | None:
    if not x[0] <= share <= x[-1]:
        return None
    rate, low, high = (float(np.interp(share, x, column)) for column in columns)
    return rate, low, high


def _rates(found: Rates | None) -> str:
    return f"{percent(found[0])} [{span(found)}]" if found else "-"
