"""The page's parts that show texts of others: examples behind a notice, sampled prompts, judges, how it was measured; all inert."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.data.variety import distinct, stutters
from dat_jax.judges import JUDGES
from dat_jax.report import figures, html
from dat_jax.report.examples import SHOWN
from dat_jax.report.html import clipped, details, number, text
from dat_jax.report.results import Results
from dat_jax.report.wording import ACCESS, agreement_sentence, is_worst, label, title
from dat_jax.settings import dotted

SHOWN_BEHAVIORS, SHOWN_PROMPTS, SHOWN_TOGETHER = 10, 12, 60
NOTICE = "Requests for harmful things, prompts that attack a model, and what models answered."


def group_of(results: Results, attack: str) -> str:
    """The heading that an attack stands below in the heat map."""
    return "Together" if is_worst(attack) else ACCESS[results.surfaces.get(attack, "text")]


def anchor(results: Results, attack: str) -> str:
    """The id of an attack's examples; names of attacks may hold what an id may not."""
    return f"examples-{results.attacks.index(attack)}"


def examples(results: Results) -> str:
    """Per attack an attempt on each behavior, all of it closed behind a notice; "" where there are none."""
    content = ""
    for attack in dict.fromkeys(example["attack"] for example in results.examples):
        of = [example for example in results.examples if example["attack"] == attack]
        summary = f"{text(label(attack, results.held_out))} <small>{html.count(len(of), 'behavior')} of {of[0]['of']}</small>"
        shown = "".join(map(_example, of[:SHOWN]))
        if rest := of[SHOWN:]:
            shown += details(html.count(len(rest), "further behavior"), "".join(map(_example, rest)))
        content += details(summary, shown, f'id="{anchor(results, attack)}"')
    if not content:
        return ""
    caption = (
        "Per attack an attempt on each behavior, those on which the models differ most first; no sample of all attempts. Where models were "
        "sent the same attempts, the same one is shown. All attempts: seed_*/answers/."
    )
    gate = f"Content notice: show examples <small>{NOTICE}</small>"
    return f'<p class="caption">{caption}</p>' + details(gate, content, 'class="gate" id="gate"')


def _example(example: Mapping[str, Any]) -> str:
    answers = example["answers"]
    alike = len({(answer["prompt"], answer["prefill"]) for answer in answers}) == 1
    rows = ""
    for answer in answers:
        own = "" if alike else f"{_sent(answer)}<br>"
        said = clipped(answer["response"]) or "(nothing)"
        rows += (
            f'<div class="answer"><span>{text(title(answer["method"]))}</span><span class="quote" dir="auto">{own}{said}</span>'
            f'<span><span class="chip {text(answer["label"])}">{text(answer["label"])}</span></span></div>'
        )
    sent = f'<p class="quote" dir="auto">{_sent(answers[0])}</p>' if alike else ""
    return f"<h3><small>{text(example['behavior'])}</small></h3>{sent}{rows}"


def _sent(answer: Mapping[str, Any]) -> str:
    prefill = f"\n(answer made to start with: {answer['prefill']})" if answer["prefill"] else ""
    return f"Sent: {clipped(answer['prompt'] + prefill)}"


def judges(results: Results) -> str:
    """How far the judges agree; "" for one judge."""
    return "".join(f"<p>{text(agreement_sentence(item))}</p>" for item in results.agreement)


def prompts(results: Results) -> str:
    """What was sampled for which responses, behind a notice of its own."""
    if not results.prompts:
        return ""
    by_behavior: dict[str, list[dict[str, Any]]] = {}
    for record in results.prompts:
        by_behavior.setdefault(record["behavior_id"], []).append(record)
    chosen = sum(bool(record["selected"]) for record in results.prompts)
    distinct = len({(record["behavior_id"], record["prompt"]) for record in results.prompts})
    said = (
        f"<p>{len(results.prompts):,} prompts were drawn for the responses of {len(by_behavior)} behaviors, {distinct:,} of them distinct, "
        f"and {chosen:,} selected for training. The sampler saw the response alone, never the request.</p>"
    )
    if drawn := figures.likelihoods(results.prompts):
        caption = "Log-likelihood of the samples. Light: all of them. Dark: those that were selected for training."
        said += f'<div class="pair"><figure>{drawn}</figure><p class="caption">{caption}</p></div>'
    said += f"<p>{_variety([record['prompt'] for record in results.prompts], [of[0]['prompt'] for of in by_behavior.values()])}</p>"
    measured = [key for key in ("log_likelihood", "compliance") if any(record[key] is not None for record in results.prompts)]
    each = max(1, min(SHOWN_PROMPTS, len(results.prompts) // len(by_behavior)))
    count = max(SHOWN_BEHAVIORS, SHOWN_TOGETHER // each)
    shown = "".join(_samples(behavior, records, measured) for behavior, records in list(by_behavior.items())[:count])
    if len(by_behavior) > count:
        shown += f'<p class="caption">The other {len(by_behavior) - count} behaviors: prompts.jsonl.</p>'
    gate = f"Content notice: show sampled prompts <small>{NOTICE}</small>"
    return said + details(gate, shown, 'class="gate" id="prompts-gate"')


def _variety(prompts: Sequence[str], firsts: Sequence[str]) -> str:
    """A sentence on stuttering and on the different word n-grams of one prompt for each behavior."""
    shares = " and ".join(html.percent(distinct(firsts, n)) for n in (1, 2))
    return (
        f"A word stands twice in a row in {html.percent(sum(map(stutters, prompts)) / len(prompts))} of the prompts. Of the words and the "
        f"pairs of words in the first prompt of each behavior, {shares} are different ones (distinct-1 and distinct-2)."
    )


def _samples(behavior: str, records: Sequence[Mapping[str, Any]], measured: Sequence[str]) -> str:
    """One behavior's response and its samples, the selected and the likelier ones first; measured: what stands behind a prompt."""
    ranked = sorted(records, key=lambda r: (not r["selected"], -(r["log_likelihood"] if r["log_likelihood"] is not None else 0.0)))
    rows = [
        ["selected" if r["selected"] else "-", f'<span dir="auto">{clipped(r["prompt"])}</span>', *(number(r[key]) for key in measured)]
        for r in ranked[:SHOWN_PROMPTS]
    ]
    chosen = sum(bool(r["selected"]) for r in records)
    summary = f"{text(behavior)} <small>{html.count(len(records), 'sample')}, {chosen} selected</small>"
    titles = {"log_likelihood": "log p", "compliance": "complied"}
    table = html.table(["", "Prompt drawn for this response", *(titles[key] for key in measured)], rows, kind="samples")
    return details(summary, f'<p class="quote" dir="auto">{clipped(records[0]["response"])}</p>{table}')


def method(results: Results, settings: Mapping[str, Any]) -> str:
    """What the numbers are and are not, and the configuration."""
    lines = "\n".join(f"{key} = {value!r}" for key, value in dotted(settings))
    judged = "".join(f"<p>{text(JUDGES[name].about)}</p>" for name in results.judges if name in JUDGES)
    return (
        "<p>Every model gets the same attempts, but for attacks that search against the model itself. A behavior counts as broken by an "
        "attack when any of its attempts is judged compliance, and in the worst case when any attack breaks it. The judge reads what was "
        "asked for and what the model said, with a prefilled beginning once.</p><p>Embedding attacks change the prompt's embeddings within "
        f"a radius. No user can do that; they stand for what a stronger search over text might find.</p>{judged}"
        "<p>Intervals: Wilson's, 95 %, over behaviors: one counts as a single trial however many seeds tried it. How far the seeds lie "
        "apart is not in them: look at the marks of the seeds. Differences between models: bootstrap over behaviors and seeds, paired. "
        "Neither covers the choice of behaviors or attacks.</p>"
        + details("Configuration", f'<pre tabindex="0">{text(lines)}</pre>')
    )
