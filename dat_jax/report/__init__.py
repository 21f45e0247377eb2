"""The report: results.json, report.md and the self-contained report.html from what the stations left in a workdir. No model is loaded."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from dat_jax.data import answers, files, manifest
from dat_jax.report import page, sweep
from dat_jax.report.markdown import findings, markdown, summary
from dat_jax.report.results import as_json, collect

BACK = "put it back as it was; without it nobody knows what the workdir was made with"


def write(workdir: epath.PathLike, say: Callable[[str], None] = lambda sentence: None) -> epath.Path:
    """Writes results.json, report.md and report.html into workdir and returns the path of the last.

    Reads seed_<s>/answers/, seed_<s>/verdicts/, and where they are there config.json, seed_<s>/<method>/metrics.jsonl and
    seed_<s>/prompts/{prompts.jsonl,cost.json,round_*/cost.json}. `say` hears the findings sentence by sentence, and a table of the
    numbers that matter.

    Raises:
      ValueError: when nothing was evaluated or judged in workdir, or a workdir of config.evaluation.sweep has no report like this one.
    """
    workdir = epath.Path(workdir)
    if not (workdir / "config.json").exists() and (workdir / "inputs.json").exists():
        raise ValueError(f"{workdir / 'config.json'} is gone, and inputs.json beside it is there; put it back as it was")
    flat = manifest.load(workdir / "config.json", BACK).content if (workdir / "config.json").exists() else {}
    results = collect(workdir, flat.get("evaluation.judges", []), answers.models_of(flat))
    settings = grouped(flat)
    content = as_json(results, settings)
    points = sweep.points(content, flat.get("evaluation.sweep", []))
    content["sweep"] = [dataclasses.asdict(point) for point in points]
    manifest.write(workdir / "results.json", json.loads(json.dumps(content, allow_nan=False)))
    files.write_text(workdir / "report.md", markdown(results))
    files.write_text(workdir / "report.html", page.html(results, settings, points))
    for sentence in (*findings(results), *summary(results)):
        say(sentence)
    return workdir / "report.html"


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
