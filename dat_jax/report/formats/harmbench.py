"""HarmBench's tree {METHOD}/{EXPERIMENT}/{test_cases,completions,results}; a method is an attack, an experiment a model.

An experiment has one list of test cases, and attacks that search send every model its own, so each model is an experiment. A test case
is a string: prefilled answers and perturbed embeddings are left out. Prompts of token ids are written as their text.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from dat_jax.data.answers import file_name
from dat_jax.report.formats.format import Format, Tried, no_prompt, write_json

# -1: the judge said neither yes nor no. HarmBench's rate counts it as not broken, as ours does. "lost" is a judge's clear no.
LABELS = {"comply": 1, "refuse": 0, "lost": 0, "unparsed": -1}


def write(folder: epath.Path, tried: Sequence[Tried]) -> None:
    """Writes test_cases.json {id: [text]}, completions {id: [{test_case, generation}]} and results, the same with a label."""
    for found in tried:
        place = folder / file_name(found.attack) / found.model
        results: dict[str, list[dict[str, Any]]] = {}
        for id, lines in found.by_behavior().items():
            results[id] = [{"test_case": x["prompt"], "generation": x["response"], "label": LABELS[x["label"]]} for x in lines]
        unlabelled = {id: [{key: entry[key] for key in ("test_case", "generation")} for entry in results[id]] for id in results}
        write_json(place / "test_cases" / "test_cases.json", {id: [entry["test_case"] for entry in results[id]] for id in results})
        write_json(place / "completions" / f"{found.model}.json", unlabelled)
        write_json(place / "results" / f"{found.model}.json", results)


FORMAT = Format("harmbench", no_prompt, write)
