"""report.md: the finding, the tables, cost and notes. No answers and prompts: Markdown has no notice that one opens first."""

import re
from collections.abc import Iterable, Sequence

from dat_jax.judges import JUDGES
from dat_jax.report.comparison import Point
from dat_jax.report.finding import findings, headline
from dat_jax.report.html import text, visible
from dat_jax.report.progress import Progress, sentences
from dat_jax.report.results import Results
from dat_jax.report.table import Table
from dat_jax.report.tables import heat_rows, tables
from dat_jax.report.wording import agreement_sentence, title

LIST, BACKSLASH = re.compile(r"^(\s*\d*)([-+=.)])(?=\s|$)"), r"\1\\\2"  # a list within the list
MARKS = re.compile(r"([\\`*_!~|#$]|\](?=[(\[:]))")  # what Markdown, or a widespread extension of it, would read as more than a letter


def markdown(results: Results, points: Sequence[Point] = (), progress: Progress | None = None) -> str:
    """The report as Markdown."""
    parts = ["# Attack success and utility\n", f"**{plain(headline(results, points))}.**\n"]
    if progress and (missing := sentences(progress)):
        parts += [f"Partial results, written {progress.written}.\n", bullets(missing)]
    parts.append(bullets(findings(results)))
    parts.append(f"## Attack success rate\n\nShare of behaviors broken, over {len(results.seeds)} seed(s), with 95 % intervals.\n")
    parts += [_judged_by(results.judges[0])] if results.judges else []
    rows = [[name, *(_rate(results, m, attack) for m in results.methods)] for attack, name in heat_rows(results)]
    parts.append(table(Table("", "", ["", *map(title, results.methods)], rows)))
    for found in tables(results, points):
        parts += [f"## {plain(found.title)}\n", *([f"{plain(found.caption)}\n"] if found.caption else []), table(found)]
    if not results.utility_rates:
        parts.append("No utility prompts were given.\n")
    if results.agreement:
        parts += ["## Agreement of judges\n", bullets(agreement_sentence(item) for item in results.agreement)]
    if results.notes:
        parts += ["## Notes\n", bullets(results.notes)]
    return "\n".join(parts)


def table(found: Table) -> str:
    """A table whose columns but the first are numbers."""
    head = f"| {' | '.join(map(plain, found.head))} |\n|---|{'---:|' * (len(found.head) - 1)}\n"
    return head + "".join(f"| {' | '.join(map(plain, row))} |\n" for row in found.rows)


def plain(shown: str) -> str:
    """A text as Markdown that shows it as it is: no tag, link, picture, emphasis, heading or border of a cell."""
    flat = text(visible(shown).replace("\n", " ")).replace("&#x27;", "'").replace("&quot;", '"')
    flat = MARKS.sub(r"\\\1", flat)
    return flat.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")  # addresses become links by themselves


def bullets(sentences_: Iterable[str]) -> str:
    """A list."""
    return "".join(f"* {re.sub(LIST, BACKSLASH, plain(sentence))}\n" for sentence in sentences_)


def _rate(results: Results, method: str, attack: str) -> str:
    found = results.attack_rates.get((method, attack))
    return f"{100 * found[0]:.1f} % [{100 * found[1]:.1f} to {100 * found[2]:.1f}]" if found else "-"


def _judged_by(name: str) -> str:
    """The judge whose verdicts the rates are, and what a reader must know of it."""
    return f"Judge: {plain(name)}." + (f" {plain(JUDGES[name].about)}" if name in JUDGES else "") + "\n"
