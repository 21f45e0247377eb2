"""AdversariaLLM's run.json: {config, runs: [{original_prompt, steps: [{model_input, model_completions, scores}, ...]}, ...]}."""

from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.data import files
from dat_jax.data.cases.case import UNKNOWN, Case, Found

SHAPE = "{config, runs: [{original_prompt, steps}, ...]}"
ONE_TURN = (["user"], ["user", "assistant"])
METRIC = "p_harmful"


def matches(content: Any) -> bool:
    """Whether a JSON value looks like a run.json."""
    runs = content.get("runs") if isinstance(content, dict) else None
    return isinstance(runs, list) and all(isinstance(run, dict) and {"original_prompt", "steps"} <= set(run) for run in runs)


def read(path: str, content: Mapping[str, Any], ids: Mapping[str, str], found: Found) -> None:
    """Adds a file's cases to `found`, one per step. ids: the evaluation's behaviors by their texts, words joined by single spaces.

    A step whose model_input is null, or that was embeddings, cannot be sent again, nor can one of several turns or with a system message.
    An assistant's message at the end of model_input is what the answer was made to start with.
    Raises ValueError naming file, run and step for what is not of the format.
    """
    for number, run in enumerate(content["runs"]):
        place = f"{path}, run {number}"
        asked = [message["content"] for message in _messages(place, "original_prompt", run["original_prompt"]) if message["role"] == "user"]
        request = " ".join(" ".join(asked).split())
        found.seen[request] = None
        if not isinstance(run["steps"], list) or not all(isinstance(step, dict) for step in run["steps"]):
            raise ValueError(f"{place}: steps is {run['steps']!r:.80}; allowed: a list of objects")
        for place_of_step, step in ((f"{place}, step {count}", step) for count, step in enumerate(run["steps"])):
            if request not in ids:
                found.left_out[UNKNOWN] += 1
            elif step.get("model_input") is None or step.get("model_input_embeddings") is not None:
                found.left_out["without a text, as perturbed embeddings are"] += 1
            elif case := _case(place_of_step, ids[request], step):
                found.cases.append(case)
            else:
                found.left_out["with a system message or several turns"] += 1


def _case(place: str, behavior: str, step: Mapping[str, Any]) -> Case | None:
    """The case of a step; None where its input is not one turn of a user's, with or without a beginning of the answer."""
    messages = _messages(place, "model_input", step["model_input"])
    if [message["role"] for message in messages] not in ONE_TURN:
        return None
    completions = step.get("model_completions", [])
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise ValueError(f"{place}: model_completions is {completions!r:.80}; allowed: a list of texts")
    prompt = files.require_text_at(place, "model_input", messages[0]["content"])
    prefill = messages[1]["content"] if len(messages) > 1 else ""
    if prefill:
        files.require_text_at(place, "model_input", prefill)
    return Case(behavior, prompt, prefill, tuple(completions), scores=_scores(place, step.get("scores") or {}, len(completions)))


def _scores(place: str, scores: Any, count: int) -> dict[str, tuple[float | None, ...]]:
    """Judge -> p_harmful of each completion; judges without that metric are left out."""
    if not isinstance(scores, dict) or not all(isinstance(metrics, dict) for metrics in scores.values()):
        raise ValueError(f"{place}: scores is {scores!r:.80}; allowed: an object {{judge: {{metric: [number or null, ...]}}}}")
    known = {judge: metrics[METRIC] for judge, metrics in scores.items() if METRIC in metrics}
    for judge, values in known.items():
        numbers = isinstance(values, list) and all(value is None or type(value) in (int, float) for value in values)
        if not numbers or len(values) != count:
            raise ValueError(f"{place}: {METRIC} of {judge} is {values!r:.80}; allowed: a number or null for each of {count} completions")
    return {judge: tuple(values) for judge, values in known.items()}


def _messages(place: str, key: str, value: Any) -> Sequence[Mapping[str, str]]:
    """A conversation; ValueError for anything but a list of objects with the texts role and content."""
    fine = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str) for message in value
    )
    if not fine:
        raise ValueError(f"{place}: {key} is {value!r:.80}; allowed: a list of objects with the texts role and content")
    return value
