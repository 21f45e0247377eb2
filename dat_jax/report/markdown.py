"""report.md: findings, the tables, cost and notes."""

from collections.abc import Iterable, Mapping, Sequence

from dat_jax.judges import JUDGES
from dat_jax.report import tables
from dat_jax.report.measures import MEASURES, TASKS
from dat_jax.report.results import COMPARED, Results, over_refusal_forms
from dat_jax.report.tables import percent, plain, span
from dat_jax.report.wording import WORST, WORST_TEXT, agreement_sentence, change, cost_items, label, measure_title, title


def findings(results: Results) -> list[str]:
    """What the numbers say, in sentences that do not say more than the intervals allow."""
    sentences = [
        f"{title(method)}: {percent(rate)} of the behaviors are broken by at least one attack (95 % interval {span(low, high)})."
        for method in results.methods
        if (found := results.attack_rates.get((method, WORST)))
        for rate, low, high in [found]
    ]
    for item in results.comparisons:
        if item["of"] in COMPARED:
            name = measure_title(item["of"]).lower()
            sentences.append(f"{title(item['first'])} against {title(item['second'])}, {name}: {change(item)}.")
    return sentences


def summary(results: Results) -> list[str]:
    """The numbers that matter, as lines of a table: two of attack success and two of usefulness, per method."""
    lines = [f"{'':<42}" + "".join(f"{title(method):>14}" for method in results.methods)]
    for rates, names in ((results.attack_rates, (WORST_TEXT, WORST)), (results.utility_rates, ("over_refusal", "exact_utility"))):
        for name in [name for name in names if any((method, name) in rates for method in results.methods)]:
            cells = [f"{100 * rates[method, name][0]:.0f} %" if (method, name) in rates else "-" for method in results.methods]
            lines.append(f"{measure_title(name):<42}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def markdown(results: Results) -> str:
    """The report as Markdown: findings, the two tables, cost, notes."""
    head = "| | " + " | ".join(plain(title(method)) for method in results.methods) + " |\n|---|" + "---:|" * len(results.methods) + "\n"

    def table(rates: Mapping[tuple[str, str], tuple[float, float, float]], names: Sequence[str]) -> str:
        def cell(method: str, name: str) -> str:
            found = rates.get((method, name))
            return f"{percent(found[0])} [{span(found[1], found[2])}]" if found else "-"

        return head + "".join(
            f"| {plain(label(name, results.held_out))} | " + " | ".join(cell(m, name) for m in results.methods) + " |\n" for name in names
        )

    measures = [name for name in MEASURES if any((m, name) in results.utility_rates for m in results.methods)]
    parts = [
        "# Attack success and utility\n",
        _bullets(findings(results)),
        f"## Attack success rate\n\nShare of behaviors broken, over {len(results.seeds)} seed(s), with 95 % intervals.\n",
        _judged_by(results.judges[0]),
        table(results.attack_rates, results.attacks),
        *tables.of_attacks(results),
        *_unparsed(results),
        "## Utility and over-refusal\n",
        table(results.utility_rates, measures) if measures else "No utility prompts were given.\n",
    ]
    if forms := over_refusal_forms(results):
        parts += ["## Over-refusal by form or type of borderline prompt\n", table(results.utility_rates, forms)]
    if asked := sorted({name for _, name in results.utility_rates if name.partition(":")[0] in TASKS}):
        parts += ["## Multiple-choice tasks\n", table(results.utility_rates, asked)]
    parts += tables.of_utility(results)
    for name, costs in (("sampled prompts", results.costs), ("sampled utility prompts", results.utility_costs)):
        if costs:
            parts.append(f"## Cost of the {name}\n")
            items = {cost["seed"]: ", ".join(f"{key} {value}" for key, value in cost_items(cost)) for cost in costs}
            parts.append(_bullets(f"seed {seed}: {text}" for seed, text in items.items()))
    if results.agreement:
        parts.append("## Agreement of judges\n")
        parts.append(_bullets(agreement_sentence(item) for item in results.agreement))
    if results.notes:
        parts += ["## Notes\n", _bullets(results.notes)]
    return "\n".join(parts)


def _unparsed(results: Results) -> list[str]:
    """A section on answers whose judge could not be read; nothing where all could."""
    if not results.unparsed:
        return []
    rows = "".join(
        f"| {plain(row['judge'])} | {plain(title(row['method']))} | {plain(label(row['attack'], results.held_out))} "
        f"| {row['unparsed']:,} of {row['answers']:,} | {percent(row['lowest'])} | {percent(row['highest'])} |\n"
        for row in results.unparsed
    )
    head = "| Judge | Model | Attack | Not parsed | None of them compliance | All of them compliance |\n|---|---|---|---:|---:|---:|\n"
    return [
        "## Answers that were not parsed\n\nAttack success at the least and at the most. All other tables count none of them.\n",
        head + rows,
    ]


def _judged_by(name: str) -> str:
    """The judge whose verdicts the rates are, and what a reader must know of it."""
    return f"Judge: `{name}`." + (f" {JUDGES[name].about}" if name in JUDGES else "") + "\n"


def _bullets(sentences: Iterable[str]) -> str:
    return "".join(f"* {plain(sentence)}\n" for sentence in sentences)
