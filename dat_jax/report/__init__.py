"""The report: results.json, report.md and the self-contained report.html from what the stations left in a workdir. No model is loaded."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from dat_jax.data import answers, files, manifest
from dat_jax.methods import METHODS
from dat_jax.report import comparison, progress
from dat_jax.report.finding import findings, headline, summary
from dat_jax.report.markdown import markdown
from dat_jax.report.page import page
from dat_jax.report.results import as_json, collect

BACK = "put it back as it was; without it nobody knows what the workdir was made with"


def write(workdir: epath.PathLike, say: Callable[[str], None] = lambda sentence: None, working: str = "", written: str = "") -> epath.Path:
    """Writes results.json, report.md and report.html into workdir and returns the path of the last.

    Reads seed_<s>/answers/, seed_<s>/verdicts/, and where they are there config.json, seed_<s>/<method>/metrics.jsonl and
    seed_<s>/prompts/{prompts.jsonl,cost.json,round_*/cost.json}. `say` hears the findings sentence by sentence, and a table of the
    numbers that matter.

    working: the process that works in workdir now, in words; then what is missing is no error. written: the time, in UTC, for readers.

    Raises:
      ValueError: when nothing was evaluated or judged in workdir.
    """
    workdir = epath.Path(workdir)
    flat = _config(workdir)
    results = collect(workdir, flat.get("evaluation.judges", []), answers.models_of(flat), working=bool(working))
    state = progress.Progress(progress.read(workdir, flat, results), working, written)
    settings = grouped(flat)
    content = as_json(results, settings)
    content["finding"] = headline(results)
    content["progress"] = {"partial": state.partial, "steps": [dataclasses.asdict(step) for step in state.steps]}
    _save(workdir, "results", content, markdown(results, (), state), page(results, settings, (), state))
    for sentence in (*progress.sentences(state), *findings(results), *summary(results)):
        say(sentence)
    return workdir / "report.html"


def compare(
    workdir: epath.PathLike, others: Sequence[str], say: Callable[[str], None] = lambda sentence: None, written: str = ""
) -> epath.Path:
    """Writes comparison.json, comparison.md and comparison.html into workdir: its models beside those of other finished workdirs.

    Raises ValueError naming the workdir that is not there, was not judged, or was judged otherwise or asked about other behaviors.
    """
    places = comparison.named(workdir, others)
    flat = {name: _config(place) for name, place in places.items()}
    own = next(iter(flat.values()))
    models = [model for config in flat.values() for model in answers.models_of(config)]
    judges = own.get("evaluation.judges", [])
    runs = comparison.runs(places, list(dict.fromkeys([*METHODS, *models])))
    unlike = comparison.check(places, runs, judges)
    results = comparison.limited(collect(workdir, judges, runs=runs), unlike)
    for name, place in places.items():
        if missing := progress.sentences(progress.Progress(progress.read(place, flat[name], results, name))):
            results = dataclasses.replace(results, notes=[f"{name} is not finished: {' '.join(missing)}", *results.notes])
    settings = {name: grouped(config) for name, config in flat.items()}
    points = comparison.points(results, settings)
    content = as_json(results, settings)
    content["finding"] = headline(results, points)
    content["points"] = [dataclasses.asdict(point) for point in points]
    content["not_comparable"] = unlike
    state = progress.Progress((), written=written)
    shown = page(results, settings, points, state, "comparison.json")
    _save(epath.Path(workdir), "comparison", content, markdown(results, points), shown)
    for sentence in (*results.notes, *findings(results), *summary(results)):
        say(sentence)
    return epath.Path(workdir) / "comparison.html"


def _save(workdir: epath.Path, name: str, content: dict[str, Any], markdown_: str, page_: str) -> None:
    manifest.write(workdir / f"{name}.json", json.loads(json.dumps(content, allow_nan=False)))
    shown = "report" if name == "results" else name
    files.write_text(workdir / f"{shown}.md", markdown_)
    files.write_text(workdir / f"{shown}.html", page_)


def _config(workdir: epath.Path) -> dict[str, Any]:
    """The content of a workdir's config.json, {} where answers alone were put there."""
    if not (workdir / "config.json").exists() and (workdir / "inputs.json").exists():
        raise ValueError(f"{workdir / 'config.json'} is gone, and inputs.json beside it is there; put it back as it was")
    return manifest.load(workdir / "config.json", BACK).content if (workdir / "config.json").exists() else {}


def grouped(flat: dict[str, Any]) -> dict[str, Any]:
    """The configuration of config.json, whose keys are dotted, as nested groups."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
        at[name] = value
    return tree
