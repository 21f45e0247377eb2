"""The report: writes results.json, report.md and the self-contained report.html from what the stations left in a workdir."""

import json
from collections.abc import Callable, Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from dat_jax.data import files
from dat_jax.evaluation import page, utility
from dat_jax.evaluation.results import COMPARED, Results, as_json, collect, over_refusal_forms
from dat_jax.evaluation.wording import WORST, change, cost_items, label, measure_title, title


def write(workdir: epath.PathLike, config: ConfigDict, say: Callable[[str], None] = lambda sentence: None) -> epath.Path:
    """Writes results.json, report.md and report.html into workdir and returns the path of the last.

    Reads workdir/seed_<s>/evaluation/<method>/**.jsonl, seed_<s>/<method>/metrics.jsonl and seed_<s>/prompts/{prompts.jsonl,cost.json},
    seed_<s>/prompts/round_*/cost.json; only the evaluation must be there.

    Args:
      config: the whole configuration, shown in the report; `methods` gives the order of the columns.
      say: hears the findings, sentence by sentence.

    Raises:
      ValueError: when nothing was evaluated in workdir.
    """
    workdir = epath.Path(workdir)
    results = collect(workdir, list(config.methods))
    settings = json.loads(config.to_json_best_effort())
    files.write_text(workdir / "results.json", json.dumps(as_json(results, settings), indent=1, allow_nan=False) + "\n")
    files.write_text(workdir / "report.md", markdown(results))
    files.write_text(workdir / "report.html", page.html(results, settings))
    for sentence in findings(results):
        say(sentence)
    return workdir / "report.html"


def findings(results: Results) -> list[str]:
    """What the numbers say, in sentences that do not say more than the intervals allow."""
    sentences = [
        f"{title(method)}: {_percent(rate)} of the behaviors are broken by at least one attack (95 % interval {_span(low, high)})."
        for method in results.methods
        if (found := results.attack_rates.get((method, WORST)))
        for rate, low, high in [found]
    ]
    for item in results.comparisons:
        if item["of"] in COMPARED:
            name = measure_title(item["of"]).lower()
            sentences.append(f"{title(item['first'])} against {title(item['second'])}, {name}: {change(item)}.")
    return sentences


def markdown(results: Results) -> str:
    """The report as Markdown: findings, the two tables, cost, notes."""
    head = "| | " + " | ".join(title(method) for method in results.methods) + " |\n|---|" + "---:|" * len(results.methods) + "\n"

    def table(rates: Mapping[tuple[str, str], tuple[float, float, float]], names: Sequence[str]) -> str:
        def cell(method: str, name: str) -> str:
            found = rates.get((method, name))
            return f"{_percent(found[0])} [{_span(found[1], found[2])}]" if found else "-"

        return head + "".join(
            f"| {label(name, results.held_out)} | " + " | ".join(cell(m, name) for m in results.methods) + " |\n" for name in names
        )

    measures = [name for name in utility.MEASURES if any((m, name) in results.utility_rates for m in results.methods)]
    parts = [
        "# Attack success and utility\n",
        "".join(f"* {sentence}\n" for sentence in findings(results)),
        f"## Attack success rate\n\nShare of behaviors broken, over {len(results.seeds)} seed(s), with 95 % intervals.\n",
        table(results.attack_rates, results.attacks),
        "## Utility and over-refusal\n",
        table(results.utility_rates, measures) if measures else "No utility prompts were given.\n",
    ]
    if forms := over_refusal_forms(results):
        parts += ["## Over-refusal by form or type of borderline prompt\n", table(results.utility_rates, forms)]
    if results.costs:
        parts.append("## Cost of the sampled prompts\n")
        costs = {cost["seed"]: ", ".join(f"{key} {value}" for key, value in cost_items(cost)) for cost in results.costs}
        parts.append("".join(f"* seed {seed}: {items}\n" for seed, items in costs.items()))
    if results.notes:
        parts += ["## Notes\n", "".join(f"* {note}\n" for note in results.notes)]
    return "\n".join(parts)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
