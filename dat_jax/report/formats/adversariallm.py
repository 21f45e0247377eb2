"""AdversariaLLM's {date}/{time}/{i}/run.json, one behavior of one model and attack in each.

A perturbation of the embeddings is a step whose model_input is null. original_prompt ends with the target as the assistant's message, which
is empty where an earlier version wrote the answers, as AdversariaLLM's own is for data without targets. Times and operations are kept per
file: they are spread evenly over its answers, and null where it does not say them.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data.answers import Line
from dat_jax.report.formats.format import TYPED, Format, Tried, no_request, write_json


def write(folder: epath.Path, tried: Sequence[Tried]) -> None:
    """Writes one run.json per model, attack and behavior, numbered through; the date is that of the last answer."""
    day = max(found.when for found in tried)
    place, numbers = folder / f"{day:%Y-%m-%d}" / f"{day:%H-%M-%S}", itertools.count()
    for found in tried:
        for id, lines in found.by_behavior().items():
            prompt = _conversation(found.requests[id], found.targets.get(id, ""))
            run: dict[str, Any] = {"original_prompt": prompt, "steps": steps(found.judge, lines, found.per_answer)}
            run["total_time"] = _spent(found.per_answer, "seconds", len(lines))
            write_json(place / str(next(numbers)) / "run.json", {"config": _config(found, id), "runs": [run]})


def steps(judge: str, lines: Sequence[Line], per_answer: Mapping[str, float]) -> list[dict[str, Any]]:
    """A step per input, with all answers to it: texts that follow each other and are equal are one input, perturbations never."""

    def sent(place: int) -> tuple:
        line = lines[place]
        return (line["prompt"], line.get("prefill", ""), line.get("tokens")) if line["surface"] in TYPED else (place,)

    found = []
    for number, (_, group) in enumerate(itertools.groupby(range(len(lines)), sent)):
        same = [lines[place] for place in group]
        text = same[0]["surface"] in TYPED
        step = {"step": number, "model_completions": [line["response"] for line in same]}
        operations = _spent(per_answer, "flops", len(same))
        step |= {"scores": {judge: {"p_harmful": [line["score"] for line in same]}}, "time_taken": _spent(per_answer, "seconds", len(same))}
        step |= {"flops": None if operations is None else int(operations), "loss": None}
        step["model_input"] = _conversation(same[0]["prompt"], same[0].get("prefill", "")) if text else None
        found.append(step | {"model_input_tokens": same[0].get("tokens") if text else None, "model_input_embeddings": None})
    return found


def _spent(per_answer: Mapping[str, float], kind: str, answers: int) -> float | None:
    return per_answer[kind] * answers if kind in per_answer else None


def _conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _config(found: Tried, id: str) -> dict[str, Any]:
    """What was run. The dataset is ours, in its own order; its places are those of the evaluation's behaviors."""
    attack = {"name": found.attack, "seed": found.seed, **found.settings, "generation_config": found.decoding}
    dataset = {"name": "dat_jax", "seed": found.seed, "shuffle": False, "idx": [found.places[id]], "behavior": id}
    model = {"id": found.made_with.get("model", found.model)}
    return {
        "model": found.model,
        "dataset": "dat_jax",
        "attack": found.attack,
        "model_params": model,
        "dataset_params": dataset,
        "attack_params": attack,
    }


FORMAT = Format("adversariallm", no_request, write)
