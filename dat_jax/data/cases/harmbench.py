"""HarmBench's test_cases.json {id: [test case, ...]}, and completions and results {id: [{test_case, generation, label}, ...]}."""

from collections.abc import Mapping
from typing import Any

from dat_jax.data import files
from dat_jax.data.cases.case import UNKNOWN, Case, Found

LABELS = (1, 0, -1)
SHAPE = "{BehaviorID: [text, ...]} or {BehaviorID: [{test_case, generation}, ...]}"


def matches(content: Any) -> bool:
    """Whether a JSON value looks like one of HarmBench's three files."""
    return isinstance(content, dict) and bool(content) and all(isinstance(entries, list) for entries in content.values())


def read(path: str, content: Mapping[str, list[Any]], ids: Mapping[str, str], found: Found) -> None:
    """Adds a file's cases to `found`. ids: the evaluation's behaviors by their ids.

    Raises ValueError naming file, key and place for an entry that is neither a text nor an object with a test case, or has another label.
    """
    for id, entries in content.items():
        found.seen[id] = None
        for number, entry in enumerate(entries):
            place = f"{path}, key {id!r}, entry {number}"
            case = _case(place, id, entry)
            if id not in ids:
                found.left_out[UNKNOWN] += 1
            elif case is None:
                found.left_out["with an image"] += 1
            else:
                found.cases.append(case)


def _case(place: str, id: str, entry: Any) -> Case | None:
    """The case of an entry; None where its test case is a list, which HarmBench writes for an image with a text."""
    known = entry if isinstance(entry, dict) else {"test_case": entry}
    if isinstance(entry, dict):
        files.require_keys_at(place, list(entry), ("test_case", "generation"), "key")
        if not isinstance(entry["generation"], str):
            raise ValueError(f"{place}: generation is {entry['generation']!r:.80}; allowed: a text")
        if "label" in entry and not (type(entry["label"]) is int and entry["label"] in LABELS):
            raise ValueError(f"{place}: label is {entry['label']!r:.80}; allowed: 1, 0 or -1")
    if isinstance(known["test_case"], list):
        return None
    if not isinstance(known["test_case"], str):
        raise ValueError(f"{place}: found {known['test_case']!r:.80}; allowed: a text, or an object test_case, generation")
    prompt = files.require_text_at(place, "test_case", known["test_case"])
    completions = (entry["generation"],) if isinstance(entry, dict) else ()
    return Case(id, prompt, completions=completions, label=known.get("label"))
