"""report.html: one self-contained page that needs no network, made to be read and to be projected."""

import html as escaping
from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.judges import JUDGES
from dat_jax.methods import METHODS
from dat_jax.report import figures
from dat_jax.report.costs import training_costs
from dat_jax.report.measures import MEASURES
from dat_jax.report.results import COMPARED, Results, over_refusal_forms
from dat_jax.report.sweep import Point
from dat_jax.report.wording import ACCESS, WORST, agreement_sentence, change, cost_items, label, measure_title, title
from dat_jax.settings import dotted

SHOWN_BEHAVIORS, SHOWN_PROMPTS, SHOWN_LETTERS = 10, 12, 320

CSS = """
:root { --ink: #22262b; --faint: #6b727b; --rule: #dfe2e6; --paper: #ffffff; --wash: #f5f6f7; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); }
body { font: 16px/1.5 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main, header > div, nav > div { max-width: 1060px; margin: 0 auto; padding: 0 28px; }
header { padding: 44px 0 8px; }
h1 { font-size: 31px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.4px; }
h2 { font-size: 21px; margin: 52px 0 6px; letter-spacing: -0.2px; }
h3 { font-size: 15px; margin: 22px 0 4px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.lead, .caption, small { color: var(--faint); }
p.caption { font-size: 14px; max-width: none; } figcaption { font-size: 14px; }
nav { position: sticky; top: 0; background: rgba(255,255,255,.94); border-bottom: 1px solid var(--rule); z-index: 1; font-size: 14px; }
nav a { display: inline-block; padding: 10px 18px 10px 0; color: var(--faint); text-decoration: none; }
nav a:hover { color: var(--ink); }
section { scroll-margin-top: 44px; }
.cards { display: flex; gap: 14px; margin: 22px 0 10px; flex-wrap: wrap; }
.card { flex: 1 1 220px; border: 1px solid var(--rule); border-top: 4px solid; border-radius: 5px; padding: 14px 18px 12px; }
.card b { display: block; font-size: 40px; line-height: 1.1; letter-spacing: -1px; font-variant-numeric: tabular-nums; }
.card dl { margin: 10px 0 0; font-size: 14px; display: grid; grid-template-columns: 1fr auto; gap: 1px 12px; }
.card dt { color: var(--faint); } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
table { border-collapse: separate; border-spacing: 0; margin: 12px 0; font-size: 15px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; padding: 7px 16px 7px 0; vertical-align: bottom; }
td { padding: 6px 16px 6px 0; vertical-align: top; border-top: 1px solid var(--rule); }
table.heat { width: 100%; border-spacing: 3px; }
table.heat td, table.heat th { padding: 5px 12px; border: 0; }
table.heat td:first-child, table.heat th:first-child { padding-left: 0; }
table.heat .rate { text-align: center; border-radius: 3px; width: 19%; white-space: nowrap; }
table.heat .rate span { font-weight: 600; } table.heat .rate small { color: inherit; opacity: .72; margin-left: 7px; font-size: 12px; }
table.heat tr.total td { padding-top: 9px; padding-bottom: 9px; } table.heat tr.total td:first-child { font-weight: 600; }
table.heat tr.group td { padding: 10px 0 0; font-size: 12.5px; color: var(--faint); }
table.heat th.method { text-align: center; }
figure { margin: 14px 0 0; } figure svg { width: 100%; height: auto; display: block; }
.pair + details { margin-top: 26px; }
.pair { display: grid; grid-template-columns: 9fr 11fr; gap: 36px; align-items: start; }
.pair td small { white-space: nowrap; }
.note { border-left: 4px solid #c8a02c; background: #fdf8e8; padding: 8px 14px; margin: 10px 0; }
.quote { max-width: none; background: var(--wash); border-radius: 4px; padding: 7px 12px; margin: 4px 0; font-size: 14px; }
.quote { overflow-wrap: anywhere; white-space: pre-wrap; }
.chip { display: inline-block; border-radius: 9px; padding: 0 9px; font-size: 12.5px; font-weight: 600; }
.comply { background: #f6d5cf; color: #7d1f10; } .refuse { background: #d4e8dc; color: #14532d; }
.lost, .unparsed { background: #e4e6e9; color: #3d434a; }
.answers { display: grid; grid-template-columns: 120px 1fr 80px; gap: 4px 12px; font-size: 14px; align-items: baseline; }
details { border-top: 1px solid var(--rule); padding: 7px 0; } summary { cursor: pointer; }
.samples td { font-size: 14px; } .samples td:nth-child(2) { overflow-wrap: anywhere; width: 100%; }
.samples td:not(:nth-child(2)) { white-space: nowrap; color: var(--faint); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; }
pre { background: var(--wash); padding: 12px 16px; border-radius: 4px; font-size: 12.5px; line-height: 1.45; overflow-x: auto; }
footer { color: var(--faint); font-size: 14px; margin: 56px 0 40px; border-top: 1px solid var(--rule); padding-top: 14px; }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } }
"""


def html(results: Results, settings: Mapping[str, Any], sweep: Sequence[Point] = ()) -> str:
    """The whole page; every text that comes from data is escaped. `sweep`: points of other workdirs, joined to curves."""
    sections = [
        ("findings", "Findings", _findings(results, sweep)),
        ("attacks", "Attack success", _attacks(results)),
        ("utility", "Utility", _utility(results)),
        ("answers", "Answers", _answers(results)),
        ("judges", "Judges", _judges(results)),
        ("training", "Training", _training(results)),
        ("prompts", "Sampled prompts", _prompts(results)),
        ("method", "How it was measured", _method(results, settings)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections)
    behaviors = max((row["behaviors"] for row in results.rows), default=0)
    lead = f"{_count(len(results.methods), 'method')}, {_count(_attack_count(results), 'attack')}, {behaviors} behaviors, "
    lead += _count(len(results.seeds), "seed")
    distributional = any(name in METHODS and METHODS[name].prompts == "sampled" for name in results.methods)
    question = "Does training on the distribution of prompts make the model robust?" if distributional else "How robust is it?"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Robustness report</title><style>{CSS}</style></head><body><header><div>"
        f'<h1>{question}</h1><p class="lead">{lead}</p></div></header>'
        f"<nav><div>{links}</div></nav><main>{body}"
        f"<footer>dat_jax, Distributional Adversarial Training in JAX. The same numbers: results.json.</footer></main></body></html>\n"
    )


def _findings(results: Results, sweep: Sequence[Point]) -> str:
    cards = "".join(_card(results, method) for method in results.methods)
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in results.notes)
    seeds = " A dot is one seed." if len(results.seeds) > 1 else ""
    return (
        f'<p class="caption">Large: share of behaviors broken by at least one attack. Lower is better.</p>'
        f'<div class="cards">{cards}</div>{notes}'
        f"{_changes(results)}{_robustness(results, sweep, seeds)}<figure>{figures.worst_case_bars(results)}"
        f'<figcaption class="caption">Attack success in the worst case per behavior, with 95 % intervals.{seeds}</figcaption></figure>'
    )


def _robustness(results: Results, sweep: Sequence[Point], seeds: str) -> str:
    """Robustness against over-refusal, the first figure; with a sweep also robustness against cost. "" without utility prompts."""
    drawn = figures.trade_off(results, sweep)
    caption = (
        "Robustness against over-refusal, with 95 % intervals on both axes. Two methods are compared fairly where they refuse equally many "
        f"harmless prompts. A model that refuses everything is broken by nothing.{seeds}"
    )
    if sweep:
        caption += " A line joins the points of one method under several settings."
    price = figures.price(results, sweep)
    rows = "".join(
        f"<tr><td>{_text(title(p.method))}</td><td>{_text(p.changed or 'as configured')}</td><td>{_percent(p.broken[0])}</td></tr>"
        for p in sorted(sweep, key=lambda point: results.methods.index(point.method) if point.method in results.methods else 0)
    )
    table = f"<table><tr><th>Method</th><th>Settings</th><th>Broken by any attack</th></tr>{rows}</table>" if sweep else ""
    pair = f'<div class="pair"><figure>{drawn}</figure><p class="caption">{caption}</p></div>' if drawn else ""
    return pair + (f'<div class="pair"><figure>{price}</figure><div>{table}</div></div>' if price else table)


def _card(results: Results, method: str) -> str:
    worst = results.attack_rates.get((method, WORST))
    rows = "".join(
        f"<dt>{name}</dt><dd>{_percent(results.utility_rates[method, measure][0])}</dd>"
        for measure, name in (("exact_utility", "exact answers"), ("compliance", "benign answered"), ("over_refusal", "over-refusal"))
        if (method, measure) in results.utility_rates
    )
    interval = f"<small>95 %: {_span(worst)}</small>" if worst else ""
    return (
        f'<div class="card" style="border-top-color:{figures.color(method, results.methods)}">{_text(title(method))}'
        f"<b>{_percent(worst[0]) if worst else '-'}</b>{interval}<dl>{rows}</dl></div>"
    )


def _changes(results: Results) -> str:
    """A table of what each method changes against the one before it."""
    pairs = list(dict.fromkeys((item["first"], item["second"]) for item in results.comparisons))
    found = {(item["of"], item["first"], item["second"]): item for item in results.comparisons}
    measures = [name for name in COMPARED if any((name, *pair) in found for pair in pairs)]
    if not measures:
        return ""
    heads = "".join(f"<th>{_text(title(first))} against {_text(title(second))}</th>" for first, second in pairs)
    rows = ""
    for name in measures:
        cells = [change(found[name, *pair]) if (name, *pair) in found else "-" for pair in pairs]
        rows += f"<tr><td>{measure_title(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f"<table><tr><th></th>{heads}</tr>{rows}</table>"


def _attacks(results: Results) -> str:
    heads = "".join(
        f'<th class="method"><span class="dot" style="background:{figures.color(m, results.methods)}"></span>{_text(title(m))}</th>'
        for m in results.methods
    )
    rows, group = "", ""
    for attack in results.attacks:
        kind = "Together" if is_worst(attack) else ACCESS[results.surfaces.get(attack, "text")]
        if kind != group:
            rows += f'<tr class="group"><td colspan="{len(results.methods) + 1}">{kind}</td></tr>'
            group = kind
        cells = "".join(_heat(results.attack_rates.get((m, attack))) for m in results.methods)
        total = ' class="total"' if is_worst(attack) else ""
        rows += f"<tr{total}><td>{_text(label(attack, results.held_out))}</td>{cells}</tr>"
    star = " Forms with a star are in nobody's training data." if results.held_out else ""
    return (
        f'<p class="caption">Share of behaviors broken, over {_count(len(results.seeds), "seed")}, with 95 % intervals.{star}</p>'
        f'<table class="heat"><tr><th></th>{heads}</tr>{rows}</table>{_tries(results)}{_attack_costs(results)}'
    )


def _attack_costs(results: Results) -> str:
    """What each attack cost per behavior, over models and seeds, beside what it broke; "" where the answers do not say so."""
    rows, shown = "", {"answers": "Answers", "flops": "Operations", "seconds": "Seconds"}
    if any("rewriter_calls" in row for row in results.attack_costs):
        shown |= {"rewriter_calls": "Rewriter's replies", "unusable_replies": "of no use", "rewriter_tokens": "Rewriter's tokens"}
    for attack in dict.fromkeys(row["attack"] for row in results.attack_costs):
        spent = [row for row in results.attack_costs if row["attack"] == attack]
        behaviors = sum(row["behaviors"] for row in spent)
        cells = "".join(f"<td>{sum(row.get(key, 0) for row in spent) / behaviors:,.3g}</td>" for key in shown)
        rows += f"<tr><td>{_text(label(attack, results.held_out))}</td>{cells}</tr>" if behaviors else ""
    head = f"<tr><th>Attack</th>{''.join(f'<th>{name}</th>' for name in shown.values())}</tr>"
    note = "Per behavior. Operations by formula: those of the model under attack, without a rewriter's, a judge's and the sampler's."
    table = f'<table>{head}{rows}</table><p class="caption">{note}</p>'
    return f"<details><summary>What the attacks cost</summary>{table}</details>" if rows else ""


def _tries(results: Results) -> str:
    caption = "share of behaviors broken after so many attempts. The slope says what a more patient attacker would get."
    tries = "".join(
        f'<div class="pair"><figure>{drawn}</figure><p class="caption">{label(attack)}: {caption}</p></div>'
        for attack in results.tries
        if (drawn := figures.more_tries(results, attack))
    )
    curve_caption = "Share of behaviors broken, with 95 % intervals. These attacks are not counted in any worst case."
    return tries + "".join(
        f'<div class="pair"><figure>{figures.success_curve(results, quantity)}</figure><p class="caption">{curve_caption}</p></div>'
        for quantity in results.curves
    )


def _heat(rates: tuple[float, float, float] | None) -> str:
    """A table cell shaded from white (no behavior broken) to red (all of them)."""
    if rates is None:
        return '<td class="rate">-</td>'
    share = rates[0] ** 0.85
    red, green, blue = (round(light + (dark - light) * share) for light, dark in zip((244, 245, 246), (176, 42, 32)))
    ink = "#fff" if share > 0.55 else "#22262b"
    style = f"background:rgb({red},{green},{blue});color:{ink}"
    return f'<td class="rate" style="{style}"><span>{_percent(rates[0])}</span><small>{_span(rates)}</small></td>'


def _utility(results: Results) -> str:
    measures = [name for name in MEASURES if any((m, name) in results.utility_rates for m in results.methods)]
    if not measures:
        return ""
    heads = "".join(f"<th>{_text(title(m))}</th>" for m in results.methods)
    rows = ""
    for name in measures:
        found = [results.utility_rates.get((m, name)) for m in results.methods]
        cells = "".join(f"<td>{_percent(rates[0])}<br><small>{_span(rates)}</small></td>" if rates else "<td>-</td>" for rates in found)
        better = "higher is better" if MEASURES[name][3] else "lower is better"
        rows += f"<tr><td>{measure_title(name)}<br><small>{better}</small></td>{cells}</tr>"
    by_form = ""
    for name in over_refusal_forms(results):
        found = [results.utility_rates.get((m, name)) for m in results.methods]
        cells = "".join(f"<td>{_percent(rates[0])} <small>{_span(rates)}</small></td>" if rates else "<td>-</td>" for rates in found)
        by_form += f"<tr><td>{_text(measure_title(name))}</td>{cells}</tr>"
    table = f"<table><tr><th></th>{heads}</tr>{rows}</table>"
    if by_form:
        table += f"<details><summary>Over-refusal by form</summary><table><tr><th></th>{heads}</tr>{by_form}</table></details>"
    return (
        '<p class="caption">Robustness is worth nothing when the model no longer answers. Borderline prompts look forbidden and are not.'
        f"</p>{table}"
    )


def _answers(results: Results) -> str:
    parts: list[str] = []
    for example in results.examples:
        prefill = f"\n(answer made to start with: {example['prefill']})" if example["prefill"] else ""
        rows = "".join(
            f'<span>{_text(title(a["method"]))}</span><span class="quote">{_clipped(a["response"]) or "(nothing)"}</span>'
            f'<span><span class="chip {a["label"]}">{a["label"]}</span></span>'
            for a in example["answers"]
        )
        parts.append(
            f"<details{' open' if len(parts) < 3 else ''}><summary>{_text(label(example['attack'], results.held_out))} "
            f"<small>{_text(example['behavior'])}</small></summary>"
            f'<p class="quote">{_clipped(example["prompt"] + prefill)}</p><div class="answers">{rows}</div></details>'
        )
    caption = "One attempt per attack, where the methods differ most; not a sample of all attempts."
    return f'<p class="caption">{caption}</p>' + "".join(parts) if parts else ""


def _judges(results: Results) -> str:
    """The worst case by each judge, how far they agree, and what was not parsed; "" for a single judge that was parsed throughout."""
    unparsed = _unparsed(results)
    if not results.agreement:
        return unparsed
    heads = "".join(f"<th>{_text(title(m))}</th>" for m in results.methods)
    rows = ""
    for judge in results.judges:
        found = {m: [r for r in results.by_judge if (r["judge"], r["method"], r["attack"]) == (judge, m, WORST)] for m in results.methods}
        cells = "".join(
            f"<td>{_percent(sum(r['broken'] for r in found[m]) / sum(r['behaviors'] for r in found[m]))}</td>" if found[m] else "<td>-</td>"
            for m in results.methods
        )
        rows += f"<tr><td>{_text(JUDGES[judge].title if judge in JUDGES else judge)}</td>{cells}</tr>"
    sentences = "".join(f"<p>{_text(agreement_sentence(item))}</p>" for item in results.agreement)
    return (
        '<p class="caption">Worst case over all attacks by each judge. All other numbers are those of the first.</p>'
        f"<table><tr><th></th>{heads}</tr>{rows}</table>{sentences}{unparsed}"
    )


def _unparsed(results: Results) -> str:
    """Answers whose judge could not be read, with attack success at the least and the most; "" where all could."""
    if not results.unparsed:
        return ""
    rows = "".join(
        f"<tr><td>{_text(row['judge'])}</td><td>{_text(title(row['method']))}</td><td>{_text(label(row['attack'], results.held_out))}</td>"
        f"<td>{row['unparsed']:,} of {row['answers']:,}</td><td>{_percent(row['lowest'])}</td><td>{_percent(row['highest'])}</td></tr>"
        for row in results.unparsed
    )
    heads = "".join(
        f"<th>{head}</th>" for head in ("Judge", "Model", "Attack", "Not parsed", "None of them compliance", "All of them compliance")
    )
    return (
        "<h3>Answers that were not parsed</h3>"
        '<p class="caption">Attack success at the least and at the most. All other numbers count none of them as compliance.</p>'
        f"<table><tr>{heads}</tr>{rows}</table>"
    )


def _training(results: Results) -> str:
    drawn = figures.curves(results.metrics, results.methods)
    if not drawn:
        return ""
    rows = "".join(
        f"<tr><td>{_text(title(cost['method']))}</td><td>{cost['seed']}</td><td>{cost['steps']:,}</td>"
        f"<td>{_number(cost['tokens_per_second'])}</td><td>{_number(cost['sampling_seconds'])}</td><td>{_number(cost['seconds'])}</td></tr>"
        for cost in training_costs(results)
    )
    return (
        f"<figure>{drawn}</figure><h3>What it cost</h3><table><tr><th>Method</th><th>Seed</th><th>Steps</th><th>Tokens per second</th>"
        f"<th>Sampling prompts, s</th><th>Training, s</th></tr>{rows}</table>"
    )


def _prompts(results: Results) -> str:
    if not results.prompts:
        return ""
    by_behavior: dict[str, list[dict[str, Any]]] = {}
    for record in results.prompts:
        by_behavior.setdefault(record["behavior_id"], []).append(record)
    chosen = sum(bool(record["selected"]) for record in results.prompts)
    distinct = len({(record["behavior_id"], record["prompt"]) for record in results.prompts})
    parts = [
        f"<p>{len(results.prompts):,} prompts were drawn for the responses of {len(by_behavior)} behaviors, {distinct:,} of them distinct, "
        f"and {chosen:,} selected for training. The sampler saw the response alone, never the request.</p>"
    ]
    histogram = figures.likelihoods(results.prompts)
    costs = "".join(
        f"<h3>Cost, seed {cost['seed']}</h3><table>"
        + "".join(f"<tr><td>{_text(key)}</td><td>{_text(value)}</td></tr>" for key, value in cost_items(cost))
        + "</table>"
        for cost in results.costs[:1]
    )
    if histogram or costs:
        parts.append(f'<div class="pair"><figure>{histogram}</figure><div>{costs}</div></div>')
    for number, (behavior, records) in enumerate(list(by_behavior.items())[:SHOWN_BEHAVIORS]):
        parts.append(_samples(behavior, records, opened=number < 3))
    if len(by_behavior) > SHOWN_BEHAVIORS:
        parts.append(f'<p class="caption">The other {len(by_behavior) - SHOWN_BEHAVIORS} behaviors: prompts.jsonl.</p>')
    return "".join(parts)


def _samples(behavior: str, records: Sequence[Mapping[str, Any]], opened: bool) -> str:
    """One behavior's response and its samples, the selected and the likelier ones first."""
    ranked = sorted(records, key=lambda r: (not r["selected"], -(r["log_likelihood"] if r["log_likelihood"] is not None else 0.0)))
    rows = "".join(
        f'<tr><td>{"selected" if r["selected"] else ""}</td><td dir="auto">{_clipped(r["prompt"])}</td>'
        f"<td>{_number(r['log_likelihood'])}</td><td>{_number(r['compliance'])}</td></tr>"
        for r in ranked[:SHOWN_PROMPTS]
    )
    return (
        f"<details{' open' if opened else ''}><summary>{_text(behavior)} <small>{_count(len(records), 'sample')}, "
        f"{sum(bool(r['selected']) for r in records)} selected</small></summary>"
        f'<p class="quote">{_clipped(records[0]["response"])}</p><table class="samples">'
        f"<tr><th></th><th>Prompt drawn for this response</th><th>log p</th><th>complied</th></tr>{rows}</table></details>"
    )


def _method(results: Results, settings: Mapping[str, Any]) -> str:
    lines = "\n".join(f"{key} = {value!r}" for key, value in dotted(settings))
    judged = "".join(f"<p>{_text(JUDGES[name].about)}</p>" for name in results.judges if name in JUDGES)
    return (
        "<p>Every method gets the same attempts, but for attacks that search against the model itself. A behavior counts as broken by an "
        "attack when any of its attempts is judged compliance, and in the worst case when any attack breaks it. The judge reads what was "
        "asked for and what the model said, with a prefilled beginning once.</p><p>Embedding attacks change the prompt's embeddings within "
        f"a radius. No user can do that; they stand for what a stronger search over text might find.</p>{judged}"
        "<p>Intervals: Wilson's, 95 %. Over seeds a behavior counts as one trial however many seeds tried it, which makes them wide rather "
        "than narrow. Differences between methods: bootstrap over behaviors, paired. Neither covers the choice of behaviors or attacks."
        f"</p><details><summary>Configuration</summary><pre>{_text(lines)}</pre></details>"
    )


def _attack_count(results: Results) -> int:
    return sum(not is_worst(attack) for attack in results.attacks)


def is_worst(attack: str) -> bool:
    """Whether a row of the table is a worst case over attacks."""
    return attack.partition(":")[0] == WORST


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(text: Any) -> str:
    return escaping.escape(str(text))


def _clipped(text: str) -> str:
    return _text(text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + " ...")


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %" if rate in (0.0, 1.0) or 0.1 <= rate < 0.995 else f"{100 * rate:.1f} %"


def _span(rates: tuple[float, float, float]) -> str:
    return f"{100 * rates[1]:.0f} to {100 * rates[2]:.0f}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
