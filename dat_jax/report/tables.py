"""Tables of report.md on attack success taken apart, and on likelihoods and classes of answers; see breakdown.py for the numbers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dat_jax.report import breakdown
from dat_jax.report.measures import LIKELIHOODS
from dat_jax.report.wording import WORST, WORST_TEXT, label, title

if TYPE_CHECKING:
    from dat_jax.report.results import Results


def of_attacks(results: Results) -> list[str]:
    """The sections behind the table of attack success; those without rows are left out."""
    held = results.held_out
    parts: list[str] = []
    if results.averages:
        rows = []
        for method in results.methods:
            own = [row for row in results.averages if row["method"] == method]
            if own:
                means = [sum(row[key] or 0.0 for row in own) / len(own) for key in ("average", "worst_case_text", "worst_case")]
                rows.append([title(method), str(own[0]["attacks"]), *map(percent, means)])
        about = "HarmBench averages the share of attempts over behaviors and attacks. The worst case counts what any attempt breaks."
        head = ["Model", "Attacks", "Average over attempts", "Worst case over text attacks", "Worst case"]
        parts += [f"## Average and worst case\n\n{about}\n", table(head, rows)]
    kept = [row for row in results.categories if row["attack"] in (WORST_TEXT, WORST)]
    if kept:
        cells = {
            (row["category"], row["attack"], row["method"]): f"{percent(row['rate'])} [{span(row['low'], row['high'])}]" for row in kept
        }
        sizes = {row["category"]: row["behaviors"] for row in kept}
        rows = [
            [category, label(attack), str(sizes[category]), *(cells.get((category, attack, method), "-") for method in results.methods)]
            for category in sizes
            for attack in (WORST_TEXT, WORST)
            if any((category, attack, method) in cells for method in results.methods)
        ]
        head = ["Category", "", "Behaviors", *map(title, results.methods)]
        parts += ["## By category of behaviors\n", table(head, rows)]
    tests = [row for row in results.paired_tests if row["of"].partition(":")[0] != "over_refusal" or row["of"] == "over_refusal"]
    if tests:
        about = (
            "Exact McNemar over the behaviors or prompts that both models have (with several seeds a sign test of each one's mean), p once "
            "more corrected for the attacks of the two models (Holm), and the difference with its bootstrap interval over items and seeds."
        )
        rows = [
            [title(row["first"]), title(row["second"]), label(row["of"], held),
             f"{row['only_first']} : {row['only_second']} of {row['items']}",
             _p(row["p"]), "-" if row["p_holm"] is None else _p(row["p_holm"]),
             f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f} to {100 * row['high']:+.1f}]"]
            for row in tests
        ]  # fmt: skip
        head = ["Model", "Against", "Of", "Only the one : only the other", "p", "p, Holm", "Difference, points"]
        parts += [f"## Paired tests\n\n{about}\n", table(head, rows)]
    return parts + _of_tries(results) + _of_compute(results)


def _of_tries(results: Results) -> list[str]:
    if not results.over_tries:
        return []
    rows = []
    for row in results.over_tries:
        curve = ", ".join(f"{point['tries']}: {percent(point['rate'])}" for point in row["points"])
        law = "-" if row["a"] is None else f"{row['a']:.2f} N^-{row['b']:.2f}"
        forecast = "-" if row["forecast"] is None else f"{percent(row['forecast'])} ({100 * row['error']:+.1f} points)"
        rows.append([label(row["attack"], results.held_out), title(row["method"]), curve, law, f"{row['fitted_to']}", forecast])
    about = (
        "Success after so many tries, in the mean over their orders, and the power law of -log(success). The forecast is of all tries, by "
        "the law of the first ones; in brackets by how much it is off."
    )
    head = ["Attack", "Model", "Tries: success", "-log(success)", "First tries", "Forecast"]
    return [f"## Success over tries\n\n{about}\n", table(head, rows)]


def _of_compute(results: Results) -> list[str]:
    if not results.against_compute:
        return []
    rows = [
        [title(row["method"]), label(row["attack"], results.held_out), f"{row['flops']:.2e}", f"{row['seconds']:.2f}", percent(row["rate"]),
         f"{row['total_flops']:.2e}", percent(row["worst_so_far"])]
        for row in results.against_compute
    ]  # fmt: skip
    about = (
        "Operations by formula and seconds per behavior, the cheapest attack first, and what an attacker has broken who tries them in turn."
    )
    head = ["Model", "Attack", "Operations", "Seconds", "Success", "Operations so far", "Broken so far"]
    return [f"## Success against compute\n\n{about}\n", table(head, rows)]


def of_utility(results: Results) -> list[str]:
    """The sections behind the table of utility: likelihoods, and the classes of judges that have more than the labels."""
    parts: list[str] = []
    if results.likelihoods:
        means = {key: breakdown.mean_over_seeds(results.likelihoods, ("method", "measure"), lambda row, key=key: row[key])
                 for key in ("value", "low", "high")}  # fmt: skip
        rows = [
            [text, *(_interval(*(means[key][method, name] for key in means)) if (method, name) in means["value"] else "-"
                     for method in results.methods)]
            for name, text in LIKELIHOODS.items()
            if any(row["measure"] == name for row in results.likelihoods)
        ]  # fmt: skip
        about = "Nats per token with 95 % intervals over chats or behaviors; means over the seeds. No judge takes part."
        parts += [f"## Likelihoods\n\n{about}\n", table(["", *map(title, results.methods)], rows)]
    if results.classes:
        found: dict[tuple[str, str, str], dict[str, int]] = {}
        for row in results.classes:
            counts = found.setdefault((row["judge"], row["set"], row["method"]), {})
            for name, count in {**row["classes"], "not parsed": row["unparsed"]}.items():
                counts[name] = counts.get(name, 0) + count
        rows = []
        for (judge, of, method), counts in found.items():
            total = sum(counts.values())
            rows.append([judge, of, title(method), str(total), ", ".join(f"{name} {percent(n / total)}" for name, n in counts.items())])
        parts += ["## Classes of answers to harmless prompts and contrasts\n", table(["Judge", "Set", "Model", "Answers", "Classes"], rows)]
    return parts


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head)]
    return "".join("| " + " | ".join(map(plain, line)) + " |\n" for line in (*lines, *rows))


def plain(text: str) -> str:
    """A text as Markdown that shows it: names from a user's files are neither tags nor borders of cells."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def percent(rate: float) -> str:
    """A rate in percent."""
    return f"{100 * rate:.1f} %"


def span(low: float, high: float) -> str:
    """An interval of rates in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f} to {high:.3f}]"
