"""The embedded world's files, in the formats that users bring: behaviors, targets, refusals, chats, rewrites, must-answer prompts."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dat_jax.data.files import write_text
from dat_jax.world import grammar
from dat_jax.world.grammar import Request
from dat_jax.world.splits import Splits

# Where each file stands in a config: (group, key, name in the world's folder).
FILES = (
    ("target", "model", "target"),
    ("sampler", "model", "sampler"),
    ("data", "behaviors", "behaviors_train.csv"),
    ("data", "targets", "targets.json"),
    ("data", "safe_responses", "safe_responses.csv"),
    ("data", "chats", "chats.jsonl"),
    ("data", "eval_behaviors", "behaviors_eval.csv"),
    ("data", "eval_targets", "targets.json"),
    ("data", "watch_behaviors", "behaviors_watch.csv"),
    ("data", "watch_targets", "targets_watch.json"),
    ("data", "rewrites", "rewrites.jsonl"),
    ("data", "train_rewrites", "train_rewrites.jsonl"),
    ("data", "benign", "benign.jsonl"),
    ("data", "borderline", "borderline.jsonl"),
)
PLACES = 3  # variants of a form that differ in the place they name
SPELLINGS = 2  # misspellings of each request in the training data, in every place
EVALUATION_FORMS = 4  # forms in which each benign or borderline request is evaluated, the direct one among them


def pairs(seed: int) -> list[dict[str, str]]:
    """All (prompt, response) pairs of the world that its two models learn from, with their form: no held-out form, every request."""
    rng = np.random.default_rng([seed, 5])
    return [
        {"prompt": grammar.render(request, form, variant), "response": grammar.answer(request), "form": form}
        for form in grammar.FORMS
        for request in grammar.REQUESTS
        for variant in _variants(request, form, rng)
    ]


def write(folder: pathlib.Path, seed: int, splits: Splits, learned: Sequence[dict[str, str]]) -> None:
    """Write every file of the world but its models into `folder`, each in one go; `learned` are the `pairs` of the seed."""
    rng = np.random.default_rng([seed, 6])
    for name, requests in (
        ("behaviors_train.csv", splits.train),
        ("behaviors_eval.csv", splits.evaluation),
        ("behaviors_watch.csv", splits.tuned),  # which adversarial training and evaluation leave out
    ):
        rows = [(grammar.render(request, "direct"), request.verb, "", "", request.id) for request in requests]
        _write_csv(folder / name, ("Behavior", "Category", "Tags", "ContextString", "BehaviorID"), rows)
    behaviors = (*splits.train, *splits.evaluation)
    for name, requests in (("targets.json", behaviors), ("targets_watch.json", splits.tuned)):
        write_text(folder / name, json.dumps({request.id: [grammar.answer(request)] for request in requests}, indent=1) + "\n")
    refusals = [(grammar.render(request, "direct"), grammar.REFUSALS[i % len(grammar.REFUSALS)]) for i, request in enumerate(behaviors)]
    _write_csv(folder / "safe_responses.csv", ("Behavior", "Safe_Response"), refusals)
    _write_jsonl(folder / "chats.jsonl", chats(splits))
    for name in ("benign", "borderline"):
        _write_jsonl(folder / f"{name}.jsonl", answered(getattr(splits, f"{name}_evaluation"), rng))
    _write_jsonl(folder / "rewrites.jsonl", rewrites(splits.evaluation, (*grammar.REWRITES, *grammar.COMPOSED_FORMS), rng))
    known = tuple(form for form in grammar.REWRITES if form in grammar.FORMS)
    _write_jsonl(folder / "train_rewrites.jsonl", rewrites(splits.train, known, np.random.default_rng([seed, 8])))
    _write_jsonl(folder / "pairs.jsonl", learned)


def chats(splits: Splits) -> list[dict[str, Any]]:
    """Benign and borderline chats in the common forms: utility data, which in reality does not cover rare forms either."""
    return [
        {
            "messages": [
                {"role": "user", "content": grammar.render(request, form, variant)},
                {"role": "assistant", "content": grammar.answer(request)},
            ]
        }
        for request in (*splits.benign_chats, *splits.borderline_chats)
        for form in grammar.COMMON_FORMS
        for variant in range(PLACES)
    ]


def answered(requests: Sequence[Request], rng: np.random.Generator) -> list[dict[str, str]]:
    """Prompts that must be answered, with the exact answers: each request directly and in some other forms, held-out ones included."""
    others = [form for form in (*grammar.FORMS, *grammar.HELD_OUT_FORMS) if form != "direct"]
    return [
        {"id": f"{request.id}.{form}", "prompt": _render(request, form, rng), "response": grammar.answer(request), "form": form}
        for request in requests
        for form in ("direct", *rng.choice(others, EVALUATION_FORMS - 1, replace=False))
    ]


def rewrites(requests: Sequence[Request], forms: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Behaviors in these forms; `held_out` marks those that no model was trained on."""
    return [
        {"id": request.id, "rewrite": form, "prompt": _render(request, form, rng), "held_out": form not in grammar.FORMS}
        for form in forms
        for request in requests
    ]


def _variants(request: Request, form: str, rng: np.random.Generator) -> list[int]:
    count = grammar.variants(request, form)
    if count == PLACES:
        return list(range(PLACES))
    spellings = rng.choice(count // PLACES, SPELLINGS, replace=False)
    return [int(spelling) * PLACES + place for spelling in spellings for place in range(PLACES)]


def _render(request: Request, form: str, rng: np.random.Generator) -> str:
    """The request in this form without a place, misspelt at random where the form is."""
    return grammar.render(request, form, PLACES * int(rng.integers(grammar.variants(request, form) // PLACES)))


def _write_csv(path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
