"""The report's tables, once for the page and for Markdown: a new one is a function here and a row in TABLES.

A table's cells are plain texts; whoever shows them makes them inert.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from dat_jax.judges import JUDGES
from dat_jax.report import comparison, league, taken_apart
from dat_jax.report.comparison import Point
from dat_jax.report.costs import flops, training_costs
from dat_jax.report.finding import refusals
from dat_jax.report.html import number, percent, span
from dat_jax.report.measures import MEASURES, TASKS
from dat_jax.report.results import COMPARED, Results, over_refusal_forms
from dat_jax.report.table import Table
from dat_jax.report.wording import WORST, change, cost_items, is_worst, label, measure_title, title, workdir_of

Rates = tuple[float, float, float]


def tables(results: Results, points: Sequence[Point] = ()) -> list[Table]:
    """All tables that have rows, in the order of TABLES."""
    return [table for make in TABLES for table in make(results, points) if table.rows]


def _rates(found: Rates | None) -> str:
    return f"{percent(found[0])} [{span(found)}]" if found else "-"


def _by_method(
    results: Results, rates: Mapping[tuple[str, str], Rates], names: Iterable[str], shown: Callable[[str], str]
) -> list[list[str]]:
    return [[shown(name), *(_rates(rates.get((m, name))) for m in results.methods)] for name in names]


def _models(results: Results) -> list[str]:
    return ["", *(title(method) for method in results.methods)]


def changes(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What each model changes against the one it is compared with."""
    pairs = list(dict.fromkeys((item["first"], item["second"]) for item in results.comparisons))
    found = {(item["of"], item["first"], item["second"]): item for item in results.comparisons}
    head = ["", *(f"{title(first)} against {title(second)}" for first, second in pairs)]
    rows = [
        [measure_title(name), *(change(found[name, *pair]) if (name, *pair) in found else "-" for pair in pairs)]
        for name in COMPARED
        if any((name, *pair) in found for pair in pairs)
    ]
    about = "Paired over behaviors or prompts and over seeds, in points of per cent, with 95 % intervals."
    yield Table("findings", "Differences", head, rows, about)


def trade_off(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """The numbers of the first figure, with the model that refuses everything."""
    if measure := refusals(results):
        rows = [
            [title(m), _rates(results.attack_rates[m, WORST]), _rates(results.utility_rates[m, measure])]
            for m in results.methods
            if (m, WORST) in results.attack_rates and (m, measure) in results.utility_rates
        ]
        rows += [["A model that refuses everything", "0 %", "100 %"]] if rows else []
        head = ["", "Broken by any attack", measure_title(measure)]
        yield Table("findings", "Robustness against over-refusal", head, rows, folded=True)


def settings(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What differs between the workdirs of a comparison."""
    names = comparison.workdirs(results)
    if len(names) > 1:
        changed = {workdir_of(point.method): point.changed for point in points}
        spent = {point.method: point.flops for point in points}
        rows = [
            [title(method), changed.get(workdir_of(method)) or ("as configured" if workdir_of(method) == names[0] else "-"), operations]
            for method in results.methods
            if (operations := "-" if spent.get(method) is None else f"{(spent[method] or 0) / 1e12:,.3g}")
        ]
        yield Table("findings", "What differs between the workdirs", ["", "Settings", "TFLOP per seed"], rows)


def utility(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What happens to harmless prompts; and over-refusal by form."""
    measures = [name for name in MEASURES if any((m, name) in results.utility_rates for m in results.methods)]

    def shown(name: str) -> str:
        return f"{measure_title(name)} ({'higher' if MEASURES[name][3] else 'lower'} is better)"

    caption = "Robustness is worth nothing when the model no longer answers. Borderline prompts look forbidden and are not."
    yield Table(
        "utility", "Utility and over-refusal", _models(results), _by_method(results, results.utility_rates, measures, shown), caption
    )
    forms = _by_method(results, results.utility_rates, over_refusal_forms(results), measure_title)
    asked = sorted({name for _, name in results.utility_rates if name.partition(":")[0] in TASKS})
    yield Table("utility", "Multiple-choice tasks", _models(results), _by_method(results, results.utility_rates, asked, measure_title))
    yield Table("utility", "Over-refusal by form or type of borderline prompt", _models(results), forms, folded=True)


def by_judge(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """The worst case by each judge, where there are several."""
    rows = []
    for judge in results.judges if results.agreement else ():
        row = [JUDGES[judge].title if judge in JUDGES else judge]
        for m in results.methods:
            found = [r for r in results.by_judge if (r["judge"], r["method"], r["attack"]) == (judge, m, WORST)]
            row.append(percent(sum(r["broken"] for r in found) / sum(r["behaviors"] for r in found)) if found else "-")
        rows.append(row)
    caption = "Worst case over all attacks by each judge. All other numbers are those of the first."
    yield Table("judges", "Worst case by judge", _models(results), rows, caption)


def unparsed(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Answers whose judge could not be read, with attack success at the least and the most."""
    rows = [
        [row["judge"], title(row["method"]), label(row["attack"], results.held_out), f"{row['unparsed']:,} of {row['answers']:,}",
         percent(row["lowest"]), percent(row["highest"])] for row in results.unparsed
    ]  # fmt: skip
    head = ["Judge", "Model", "Attack", "Not parsed", "None of them compliance", "All of them compliance"]
    caption = "Attack success at the least and at the most. All other numbers count none of them as compliance."
    yield Table("judges", "Answers that were not parsed", head, rows, caption)


def attack_costs(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What each attack cost per behavior, over models and seeds; nothing where the answers do not say so."""
    rows, shown = [], {"answers": "Answers", "whole_flops": "Operations", "seconds": "Seconds"}
    if any("rewriter_calls" in row for row in results.attack_costs):
        shown |= {"rewriter_calls": "Rewriter's replies", "unusable_replies": "of no use", "rewriter_tokens": "Rewriter's tokens"}
    for attack in dict.fromkeys(row["attack"] for row in results.attack_costs):
        spent = [row for row in results.attack_costs if row["attack"] == attack]
        if behaviors := sum(row["behaviors"] for row in spent):
            most = [found[0] for m in results.methods if (found := results.attack_rates.get((m, attack)))]
            cells = [f"{sum(row.get(key, 0) for row in spent) / behaviors:,.3g}" for key in shown]
            rows.append([label(attack, results.held_out), *cells, percent(max(most)) if most else "-"])
    caption = (
        "Per behavior. Operations by formula: of the model under attack, of the sampler that drew the prompts, of a rewriter and a judge "
        "that are local models. What stands behind an endpoint is not known. Seconds are of answering and drawing."
    )
    head = ["Attack", *shown.values(), "Broken, most vulnerable model"]
    yield Table("cost", "What the attacks cost", head, rows, caption, folded=len(rows) > 12)


def training(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What the trainings cost, with the operations of sampling."""
    spent = {(row["method"], row["seed"]): row["total"] for row in flops(results)}
    rows = []
    for cost in training_costs(results):
        total = spent.get((cost["method"], cost["seed"]))
        numbers = [number(cost[key]) for key in ("tokens_per_second", "sampling_seconds", "seconds")]
        rows.append(
            [title(cost["method"]), str(cost["seed"]), f"{cost['steps']:,}", *numbers, "-" if total is None else f"{total / 1e12:,.3g}"]
        )
    head = ["Model", "Seed", "Steps", "Tokens per second", "Sampling prompts, s", "Training, s", "TFLOP, sampling included"]
    yield Table("cost", "What the trainings cost", head, rows)


def sampling(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """What the sampled prompts cost, per seed."""
    for name, costs in (("sampled prompts", results.costs), ("sampled utility prompts", results.utility_costs)):
        keys = list(dict.fromkeys(key for cost in costs for key, _ in cost_items(cost)))
        head = ["", *(f"seed {cost['seed']}{f' of {place}' if (place := cost.get('workdir')) else ''}" for cost in costs)]
        rows = [[key, *(dict(cost_items(cost)).get(key, "-") for cost in costs)] for key in keys]
        yield Table("cost", f"Cost of the {name}", head, rows, folded=True)


TABLES: tuple[Callable[[Results, Sequence[Point]], Iterable[Table]], ...] = (
    trade_off, league.league, league.at_fixed_refusals, changes, settings, *taken_apart.OF_ATTACKS, utility, *taken_apart.OF_UTILITY,
    by_judge, unparsed, training, attack_costs, *taken_apart.OF_COST, sampling,
)  # fmt: skip


def heat_rows(results: Results) -> list[tuple[str, str]]:
    """(attack, its name with a star for held-out forms), in the order of the table."""
    return [(attack, label(attack, results.held_out)) for attack in results.attacks]


def attack_count(results: Results) -> int:
    """How many attacks there are, each variant of one counted."""
    return sum(not is_worst(attack) for attack in results.attacks)
