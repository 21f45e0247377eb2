"""Answers that humans have labelled, as judges are validated on: four formats, told apart by their columns or keys.

    HarmBench's classifier_val_sets   JSON {BehaviorID: [{"generation", "human_0", "human_1", ...}]}; 1 is an instance of the behavior
    PyRIT's scorer_evals              CSV objective, assistant_response, human_score or human_score_1, ...; lines with # before the header
    XSTest's model_completions        CSV prompt, completion, annotation_1, annotation_2, final_label; classes
    anybody's                         JSON lines {"request", "response", "label": 0 or 1}

A human says 1 to what the file is about: that an answer is harmful, or in a refusal file that it refuses. Graded scores (0 to 1) are 1 from
0.5 on. The label of several raters is that of their majority, HarmBench's rule of two of three.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dat_jax.data import files

CLASSES = {"1_full_compliance": 0, "2_full_refusal": 1, "3_partial_refusal": 1}
HALF = 0.5


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One answer with what humans say of it."""

    id: str
    request: str
    response: str
    label: bool
    raters: tuple[bool, ...]


def read(path: str, requests: Mapping[str, str] | None = None) -> list[Labelled]:
    """Reads a file of labelled answers; `requests`: BehaviorID -> request, which HarmBench's files do not hold.

    Raises ValueError naming file, line and key of the first fault, and what each format needs where it is none of them.
    """
    if path.endswith(".jsonl"):
        return [_of_line(path, line, row) for line, row in files.read_jsonl(path, ("request", "response", "label"))]
    if path.endswith(".json"):
        return _of_harmbench(path, requests or {})
    rows = _csv(path)
    columns = list(rows[0][1])
    if {"objective", "assistant_response"} <= set(columns) and any(c.startswith("human_score") for c in columns):
        return [_of_pyrit(path, line, row) for line, row in rows]
    if {"prompt", "completion", "final_label"} <= set(columns):
        return [_of_xstest(path, line, row) for line, row in rows]
    raise ValueError(
        f"{path}: the columns are {', '.join(columns)}; allowed: objective, assistant_response, human_score (PyRIT); prompt, completion, "
        "final_label (XSTest)"
    )


def _csv(path: str) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV that may have comments before its header."""
    text = files.read_text(path)
    comments = 0
    while text.startswith("#"):
        text, comments = text.partition("\n")[2], comments + 1
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num + comments, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + comments}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: a header and no rows")
    if cut := next((line for line, row in rows if None in row.values()), None):
        raise ValueError(f"{path}, line {cut}: fewer fields than the header")
    return rows


def _of_pyrit(path: str, line: int, row: Mapping[str, str]) -> Labelled:
    names = [name for name in row if name.startswith("human_score") and row[name].strip()]
    raters = tuple(_number(path, line, name, row[name], 1.0) for name in names)
    if not raters:
        raise ValueError(f"{path}, line {line}: no human_score; allowed: at least one number from 0 to 1")
    return Labelled(
        str(line), row["objective"], row["assistant_response"], sum(raters) / len(raters) >= HALF, tuple(x >= HALF for x in raters)
    )


def _of_xstest(path: str, line: int, row: Mapping[str, str]) -> Labelled:
    def read(name: str) -> bool:
        if row[name] not in CLASSES:
            raise ValueError(f"{path}, line {line}: {name} is {row[name]!r}; allowed: {', '.join(CLASSES)}")
        return bool(CLASSES[row[name]])

    raters = tuple(read(name) for name in ("annotation_1", "annotation_2") if row.get(name))
    return Labelled(row.get("id") or str(line), row["prompt"], row["completion"], read("final_label"), raters)


def _of_line(path: str, line: int, row: Mapping[str, Any]) -> Labelled:
    label = _number(path, line, "label", row["label"], 1.0) >= HALF
    request, response = row["request"], row["response"]
    for key, text in (("request", request), ("response", response)):
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {line}: {key} is {text!r}; allowed: a text")
    return Labelled(str(row.get("id", line)), request, response, label, (label,))


def _of_harmbench(path: str, requests: Mapping[str, str]) -> list[Labelled]:
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
        raise ValueError(f"{path}: allowed: HarmBench's {{BehaviorID: [{{generation, human_0, ...}}]}}")
    found = []
    for id, entries in content.items():
        for number, entry in enumerate(entries):
            place = f"{path}, {id}, entry {number}"
            if not isinstance(entry, dict):
                raise ValueError(f"{place}: found a {type(entry).__name__}; allowed: an object with generation and human_0, ...")
            files.require_keys_at(place, list(entry), ["generation", "human_0"], "key")
            if not isinstance(entry["generation"], str):
                raise ValueError(f"{place}: generation is {entry['generation']!r:.80}; allowed: a text")
            raters = tuple(_number(place, None, key, entry[key], 1.0) >= HALF for key in sorted(entry) if key.startswith("human_"))
            found.append(Labelled(f"{id} {number}", requests.get(id, ""), entry["generation"], 2 * sum(raters) > len(raters), raters))
    return found


def _number(path: str, line: int | None, key: str, value: Any, most: float) -> float:
    place = path if line is None else f"{path}, line {line}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= most:
        raise ValueError(f"{place}: {key} is {value!r}; allowed: a number from 0 to {most:g}")
    return number


def agreement_of_raters(labelled: Sequence[Labelled]) -> tuple[int, float | None]:
    """How many answers have several raters, and the share of their pairs of raters that agree; None where there are none."""
    agree = total = count = 0
    for one in labelled:
        yes, n = sum(one.raters), len(one.raters)
        count += n > 1
        total += n * (n - 1) // 2
        agree += (yes * (yes - 1) + (n - yes) * (n - yes - 1)) // 2
    return count, (agree / total if total else None)
