"""report.html: one self-contained page that needs no network, made to be read, to be watched while a run goes on, and to be projected."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.report import figures, html, palette, parts, progress, style
from dat_jax.report import tables as tables_lib
from dat_jax.report.comparison import Point, workdirs
from dat_jax.report.finding import headline
from dat_jax.report.progress import Progress
from dat_jax.report.results import Results
from dat_jax.report.table import Table
from dat_jax.report.wording import WORST, is_worst, label, measure_title, title


def page(
    results: Results,
    settings: Mapping[str, Any],
    points: Sequence[Point] = (),
    state: Progress | None = None,
    numbers: str = "results.json",
) -> str:
    """The whole page; every text that comes from data is inert. points: of several workdirs. numbers: the file with the same numbers."""
    state = state or Progress(())
    special = {
        "findings": _findings(results, points),
        "attacks": _attacks(results),
        "curves": _curves(results),
        "judges": parts.judges(results),
        "training": _training(results),
        "examples": parts.examples(results),
        "prompts": parts.prompts(results),
        "method": parts.method(results, settings),
    }
    tables = tables_lib.tables(results, points)
    sections = []
    for name, heading in SECTIONS.items():
        content = special.get(name, "") + "".join(_table(table) for table in tables if table.section == name)
        sections += [(name, heading, content)] if content else []
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections)
    again = f'<meta http-equiv="refresh" content="{progress.EVERY}">' if state.working else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{style.policy()}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">{again}'
        f"<title>Robustness report</title><style>{style.css(results.methods)}</style></head><body>"
        f'<a class="skip" href="#findings">Skip to the findings</a>{_header(results, points, state)}'
        f'<nav aria-label="Sections"><div tabindex="0" role="group" aria-label="Sections">{links}</div></nav><main>{body}</main>'
        f"<footer><div><p>dat_jax, Distributional Adversarial Training in JAX. The same numbers: {numbers}.</p></div></footer>"
        f"<script>{style.SCRIPT}</script></body></html>\n"
    )


SECTIONS = {
    "findings": "Findings",
    "attacks": "Attack success",
    "curves": "More effort",
    "utility": "Utility",
    "judges": "Judges",
    "training": "Training",
    "cost": "Cost",
    "examples": "Examples",
    "prompts": "Sampled prompts",
    "method": "How it was measured",
}  # in the order of the page; a table of tables.TABLES stands in the one that it names


def _header(results: Results, points: Sequence[Point], state: Progress) -> str:
    behaviors = max((row["behaviors"] for row in results.rows), default=0)
    counted = [
        html.count(len(results.methods), "model"),
        html.count(tables_lib.attack_count(results), "attack"),
        html.count(behaviors, "behavior"),
        html.count(len(results.seeds), "seed"),
    ]
    names = workdirs(results)
    lead = ", ".join(counted) + (f", {html.count(len(names), 'workdir')}: {', '.join(names)}" if len(names) > 1 else "")
    when = f' Written <time datetime="{html.text(state.written)}">{html.text(state.written)}</time>' if state.written else ""
    when += ' <span id="ago"></span>' if when else ""
    missing = progress.sentences(state)
    banner = ""
    if missing or state.working:
        whose = f"{html.text(state.working)} works on it; this page loads itself anew every {progress.EVERY} s." if state.working else ""
        whose = whose or "Nobody works on it now; the same command goes on."
        first = "Partial results." if missing else "All attacks are done."
        banner = f'<div class="note" role="status"><p><b>{first}</b> {whose}</p>'
        banner += "".join(f"<p>{html.text(sentence)}</p>" for sentence in missing) + "</div>"
    so_far = "So far: " if missing else ""
    return (
        f"<header><div><h1>{so_far}{html.text(headline(results, points).replace(' %', NARROW))}.</h1>"
        f'<p class="lead">{html.text(lead)}.{when}</p>{banner}</div></header>'
    )


def _table(table: Table) -> str:
    rows = [[html.text(cell) for cell in row] for row in table.rows]
    shown = html.table([html.text(cell) for cell in table.head], rows, html.text(table.caption) if table.caption else "")
    heading = html.text(table.title)
    return html.details(heading, shown) if table.folded else f"<h3>{heading}</h3>{shown}"


def legend(results: Results, methods: Sequence[str] = ()) -> str:
    """Which mark is which model's, for the figures below it."""
    shown = "".join(
        f"<li>{figures.key(m, results.methods)}{html.text(title(m))}</li>" for m in results.methods if not methods or m in methods
    )
    return f'<ul class="legend">{shown}</ul>'


def _findings(results: Results, points: Sequence[Point]) -> str:
    """Robustness against over-refusal first; then a card per model, notes, and the worst cases by surface."""
    seeds = " A small mark is one seed." if len(results.seeds) > 1 else ""
    drawn = figures.trade_off(results, points)
    caption = (
        "Robustness against over-refusal, with 95 % intervals on both axes. Low and left is good. Two models are compared fairly where "
        f"they refuse equally many harmless prompts. The cross is a model that refuses everything: nothing breaks it.{seeds}"
    )
    if any(len(workdirs(results)) > 1 for _ in drawn[:1]):
        caption += " A line joins one method under several settings; a workdir has one mark."
    cards = "".join(_card(results, method) for method in results.methods if (method, WORST) in results.attack_rates)
    first = f'<div class="pair"><figure>{drawn}</figure><div>{legend(results)}<p class="caption">{caption}</p></div></div>' if drawn else ""
    price = figures.price(results, points)
    spent = "Robustness against the operations of sampling and training. A line joins one method under several settings."
    second = f'<div class="pair"><figure>{price}</figure><div>{legend(results)}<p class="caption">{spent}</p></div></div>' if price else ""
    notes = "".join(f'<p class="note">{html.text(note)}</p>' for note in results.notes)
    shown = f'<p class="caption">Share of behaviors broken by at least one attack. Lower is better.</p><div class="cards">{cards}</div>'
    return f"{first}{second}{shown if cards else ''}{notes}{_worst_cases(results)}"


def _card(results: Results, method: str) -> str:
    worst = results.attack_rates[method, WORST]
    rows = "".join(
        f"<dt>{name}</dt><dd>{html.percent(results.utility_rates[method, measure][0])}</dd>"
        for measure, name in (("exact_utility", "exact answers"), ("compliance", "benign answered"), ("over_refusal", "over-refusal"))
        if (method, measure) in results.utility_rates
    )
    border = f"border-top-color:var(--{palette.variable(palette.color(method, results.methods))})"
    return (
        f'<div class="card" style="{border}">{figures.key(method, results.methods)}{html.text(title(method))}'
        f"<b>{html.percent(worst[0])}</b><small>95 %: {html.span(worst)}</small>{rows and f'<dl>{rows}</dl>'}</div>"
    )


def _worst_cases(results: Results) -> str:
    """The worst case by surface: a bar per model with its interval, and a stroke per seed."""
    panels = ""
    for attack in [name for name in results.attacks if is_worst(name)]:
        bars = ""
        for method in [m for m in results.methods if (m, attack) in results.attack_rates]:
            rate, low, high = (100 * share for share in results.attack_rates[method, attack])
            fill = f"fill:var(--{palette.variable(palette.color(method, results.methods))})"
            per_seed = [100 * row["rate"] for row in results.rows if row["method"] == method and row["attack"] == attack]
            seeds = "".join(
                f'<path d="M{x:.2f} 3v8" style="stroke:var(--paper);stroke-width:2" {STROKE}/>' for x in per_seed if len(per_seed) > 1
            )
            bars += (
                f"<li><div><span>{figures.key(method, results.methods)}{html.text(title(method))}</span>"
                f"<span><b>{html.percent(rate / 100)}</b> <small>{low:.0f} to {high:.0f}</small></span></div>"
                f'<svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
                f'<rect width="{rate:.2f}" height="14" style="{fill}"/>{seeds}'
                f'<path d="M{low:.2f} 7H{high:.2f}M{low:.2f} 4v6M{high:.2f} 4v6" style="stroke:var(--ink);fill:none" {STROKE}/></svg></li>'
            )
        panels += f"<div><h3>{html.text(measure_title(attack))}</h3><ul>{bars}</ul></div>" if bars else ""
    seeds = " A light stroke is one seed." if len(results.seeds) > 1 else ""
    caption = f"Behaviors broken by at least one attack on the surface, with 95 % intervals.{seeds}"
    return f'<h3>Worst case by surface</h3><p class="caption">{caption}</p><div class="bars">{panels}</div>' if panels else ""


NARROW = "\u00a0%"  # a number and its sign stay on one line
STROKE = 'vector-effect="non-scaling-stroke"'


def _attacks(results: Results) -> str:
    """The heat map: attacks by models."""
    if not results.attacks:
        return ""
    heads = "".join(f'<th scope="col">{figures.key(m, results.methods)}{html.text(title(m))}</th>' for m in results.methods)
    shown = {example["attack"] for example in results.examples}
    rows, group = "", ""
    for attack, name in tables_lib.heat_rows(results):
        kind = parts.group_of(results, attack)
        if kind != group:
            rows += f'<tr class="group"><th scope="rowgroup" colspan="{len(results.methods) + 1}">{kind}</th></tr>'
            group = kind
        cells = "".join(_heat(results.attack_rates.get((m, attack))) for m in results.methods)
        total = ' class="total"' if is_worst(attack) else ""
        named = f'<a href="#show-{parts.anchor(results, attack)}">{html.text(name)}</a>' if attack in shown else html.text(name)
        rows += f'<tr{total}><th scope="row">{named}</th>{cells}</tr>'
    star = " Forms with a star are in nobody's training data." if results.held_out else ""
    link = " An attack's name leads to its examples." if shown else ""
    caption = f"Share of behaviors broken, over {html.count(len(results.seeds), 'seed')}, with 95 % intervals.{star}{link}"
    table = f'<table class="heat"><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<p class="caption">{caption}</p>{html.box(table)}'


def _heat(rates: tuple[float, float, float] | None) -> str:
    """A cell shaded from the paper's grey (no behavior broken) to red (all of them)."""
    if rates is None:
        return "<td>-</td>"
    (light, light_ink), (dark, dark_ink) = (palette.heat(rates[0], scheme) for scheme in (0, 1))
    colors = f"--l:{light};--li:{light_ink};--d:{dark};--di:{dark_ink}"
    return f'<td class="rate" style="{colors}"><b>{html.percent(rates[0])}</b><small>{html.span(rates)}</small></td>'


def _curves(results: Results) -> str:
    """Success over tries and over what an attack is given: radius, steps, words."""
    tries = "Share of behaviors broken after so many attempts. The slope says what a more patient attacker would get."
    over = "Share of behaviors broken, with 95 % intervals. No worst case counts these points."
    panels = [
        (label(attack), tries, drawn, {method for method, _ in results.tries[attack]})
        for attack in results.tries
        if (drawn := figures.more_tries(results, attack))
    ] + [(quantity, over, figures.success_curve(results, quantity), set(results.curves[quantity])) for quantity in results.curves]
    return _panels(results, panels)


def _training(results: Results) -> str:
    trained = {method for method, _ in results.metrics}
    return _panels(results, [(*panel, trained) for panel in figures.curves(results.metrics, results.methods)])


def _panels(results: Results, panels: Sequence[tuple[str, str, str, set[str]]]) -> str:
    """Small figures side by side, below each other on a phone: (title, meaning, figure, models in it)."""
    shown = "".join(
        f"<figure><figcaption><b>{html.text(name)}</b>{html.text(meaning)}</figcaption>{drawn}</figure>"
        for name, meaning, drawn, _ in panels
    )
    methods = [m for m in results.methods if any(m in of for *_, of in panels)]
    return f'{legend(results, methods)}<div class="panels">{shown}</div>' if shown else ""
