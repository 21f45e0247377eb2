"""Tables on attack success taken apart, and on likelihoods and classes of answers; see breakdown.py for the numbers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dat_jax.report import breakdown
from dat_jax.report.measures import LIKELIHOODS
from dat_jax.report.table import Table
from dat_jax.report.wording import WORST, WORST_TEXT, label, title

if TYPE_CHECKING:
    from dat_jax.report.comparison import Point
    from dat_jax.report.results import Results

HEADLINE = 0.1  # of breakdown.MAY_BE_REFUSED: the share whose table is open


def averages(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """HarmBench's average beside the worst case."""
    rows = []
    for method in results.methods:
        own = [row for row in results.averages if row["method"] == method]
        if own:
            means = [sum(row[key] or 0.0 for row in own) / len(own) for key in ("average", "worst_case_text", "worst_case")]
            rows.append([title(method), str(own[0]["attacks"]), *map(_percent, means)])
    about = "HarmBench averages the share of attempts over behaviors and attacks. The worst case counts what any attempt breaks."
    head = ["Model", "Attacks", "Average over attempts", "Worst case over text attacks", "Worst case"]
    yield Table("attacks", "Average and worst case", head, rows, about)


def categories(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """The worst cases by category of behaviors."""
    kept = [row for row in results.categories if row["attack"] in (WORST_TEXT, WORST)]
    cells = {(row["category"], row["attack"], row["method"]): f"{_percent(row['rate'])} [{_span(row['low'], row['high'])}]" for row in kept}
    sizes = {row["category"]: row["behaviors"] for row in kept}
    rows = [
        [category, label(attack), str(sizes[category]), *(cells.get((category, attack, method), "-") for method in results.methods)]
        for category in sizes
        for attack in (WORST_TEXT, WORST)
        if any((category, attack, method) in cells for method in results.methods)
    ]
    yield Table("attacks", "By category of behaviors", ["Category", "", "Behaviors", *map(title, results.methods)], rows)


def paired(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Tests of every two models on the same behaviors or prompts."""
    tests = [row for row in results.paired_tests if row["of"].partition(":")[0] != "over_refusal" or row["of"] == "over_refusal"]
    rows = [
        [title(row["first"]), title(row["second"]), label(row["of"], results.held_out),
         f"{row['only_first']} : {row['only_second']} of {row['items']}",
         _p(row["p"]), "-" if row["p_holm"] is None else _p(row["p_holm"]),
         f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f} to {100 * row['high']:+.1f}]"]
        for row in tests
    ]  # fmt: skip
    about = (
        "Exact McNemar over the behaviors or prompts that both models have (with several seeds a sign test of each one's mean), p once "
        "more corrected for the attacks of the two models (Holm), and the difference with its bootstrap interval over items and seeds."
    )
    head = ["Model", "Against", "Of", "Only the one : only the other", "p", "p, Holm", "Difference, points"]
    yield Table("attacks", "Paired tests", head, rows, about, folded=True)


def tries(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Success over tries, with its law."""
    rows = []
    for row in results.over_tries:
        curve = ", ".join(f"{point['tries']}: {_percent(point['rate'])}" for point in row["points"])
        law = "-" if row["a"] is None else f"{row['a']:.2f} N^-{row['b']:.2f}"
        forecast = "-" if row["forecast"] is None else f"{_percent(row['forecast'])} ({100 * row['error']:+.1f} points)"
        rows.append([label(row["attack"], results.held_out), title(row["method"]), curve, law, f"{row['fitted_to']}", forecast])
    about = (
        "Success after so many tries, in the mean over their orders, and the power law of -log(success). The forecast is of all tries, by "
        "the law of the first ones; in brackets by how much it is off."
    )
    head = ["Attack", "Model", "Tries: success", "-log(success)", "First tries", "Forecast"]
    yield Table("curves", "Success over tries", head, rows, about)


def compute(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Success against compute, the cheapest attack first."""
    rows = [
        [title(row["method"]), label(row["attack"], results.held_out), f"{row['flops']:.2e}", f"{row['seconds']:.2f}",
         _percent(row["rate"]), f"{row['total_flops']:.2e}", _percent(row["worst_so_far"])]
        for row in results.against_compute
    ]  # fmt: skip
    about = (
        "Operations by formula (drawing, rewriting and judging by local models included) and seconds per behavior, the cheapest attack "
        "first, and what an attacker has broken who tries them in turn."
    )
    head = ["Model", "Attack", "Operations", "Seconds", "Success", "Operations so far", "Broken so far"]
    yield Table("cost", "Success against compute", head, rows, about, folded=True)


def likelihoods(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Likelihoods of held-out chats and harmful targets."""
    means = {
        key: breakdown.mean_over_seeds(results.likelihoods, ("method", "measure"), operator.itemgetter(key))
        for key in ("value", "low", "high")
    }
    rows = [
        [text, *(_interval(*(means[key][method, name] for key in means)) if (method, name) in means["value"] else "-"
                 for method in results.methods)]
        for name, text in LIKELIHOODS.items()
        if any(row["measure"] == name for row in results.likelihoods)
    ]  # fmt: skip
    about = "Nats per token with 95 % intervals over chats or behaviors; means over the seeds. No judge takes part."
    yield Table("utility", "Likelihoods", ["", *map(title, results.methods)], rows, about)


def under_attack(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Likelihoods of targets and refusals under each attack."""
    found = {(row["method"], row["attack"], row["measure"]): _interval(row["value"], row["low"], row["high"]) for row in results.attacked}
    rows = [
        [label(attack, results.held_out), text, *(found.get((method, attack, name), "-") for method in results.methods)]
        for attack in results.attacks
        for name, text in (("target_nll", "target"), ("refusal_nll", "refusal"))
        if any((method, attack, name) in found for method in results.methods)
    ]
    about = (
        "Negative log-likelihood of each behavior's harmful target (higher is more robust) and of a refusal (lower is more robust) behind "
        "what an attack sends, in nats per token. Of several attempts the attacker's best counts. 95 % intervals over behaviors and seeds. "
        "No judge takes part."
    )
    head = ["Attack", "Of the", *map(title, results.methods)]
    yield Table("attacks", "Likelihoods under attack", head, rows, about, folded=len(rows) > 16)


def apart(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """Attacked behaviors told from harmless prompts by the likelihood of a refusal, at equal shares of harmless prompts refused."""
    found = {(row["attack"], row["method"]): row["told_apart"] for row in results.attacked if "told_apart" in row}
    first: list[list[str]] = []
    more: list[list[str]] = []
    for attack in results.attacks:
        own = {method: found[attack, method] for method in results.methods if (attack, method) in found}
        for place, share in enumerate(breakdown.MAY_BE_REFUSED if own else ()):
            cells = [_rate(own[method]["at"][place]) if method in own else "-" for method in results.methods]
            rows = first if share == HEADLINE else more
            rows.append([label(attack, results.held_out), f"refused, as {_percent(share)} of the harmless", *cells])
        if own:
            cells = [_rate(own[method]["auc"]) if method in own else "-" for method in results.methods]
            more.append([label(attack, results.held_out), "likelier refused than a harmless prompt", *cells])
    about = (
        "Each model's refusal is counted from the likelihood on at which a given share of its harmless prompts (benign and borderline) "
        "would be refused, so all models are read at equal over-refusal. The share of behaviors is higher where a model is more robust. "
        "95 % intervals over behaviors and seeds. No judge takes part."
    )
    head = ["Attack", "Share of behaviors", *map(title, results.methods)]
    yield Table("attacks", "Attacks told from harmless prompts", head, first, about)
    about = "As above. The last row of an attack is the area under that curve: 50 % is chance."
    yield Table("attacks", "The same at other shares of harmless prompts refused", head, more, about, folded=True)


def classes(results: Results, points: Sequence[Point]) -> Iterable[Table]:
    """The classes of judges that have more than the labels."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in results.classes:
        counts = found.setdefault((row["judge"], row["set"], row["method"]), {})
        for name, count in {**row["classes"], "not parsed": row["unparsed"]}.items():
            counts[name] = counts.get(name, 0) + count
    rows = []
    for (judge, of, method), counts in found.items():
        total = sum(counts.values())
        rows.append([judge, of, title(method), str(total), ", ".join(f"{name} {_percent(n / total)}" for name, n in counts.items())])
    head = ["Judge", "Set", "Model", "Answers", "Classes"]
    yield Table("utility", "Classes of answers to harmless prompts and contrasts", head, rows)


OF_ATTACKS, OF_UTILITY, OF_COST = (averages, categories, under_attack, apart, paired, tries), (likelihoods, classes), (compute,)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _rate(row: breakdown.Row) -> str:
    return f"{_percent(row['rate'])} [{_span(row['low'], row['high'])}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f} to {high:.3f}]"
