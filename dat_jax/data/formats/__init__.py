"""The public formats of behavior files, told apart by their columns. A new one is a file here and a row in FORMATS."""

import difflib
from typing import Any

from dat_jax.data import files
from dat_jax.data.formats import advbench, circuit_breakers, harmbench, jailbreakbench, named, strongreject, xstest
from dat_jax.data.formats.format import Format, Request

FORMATS: tuple[Format, ...] = (
    *(harmbench.FORMAT, jailbreakbench.FORMAT, advbench.FORMAT, strongreject.FORMAT),
    *(circuit_breakers.FORMAT, xstest.FORMAT, named.FORMAT),
)


def read_requests(path: str) -> list[tuple[str, Request]]:
    """Returns (place, request) of the behaviors in a file of any of FORMATS: a CSV, or with that ending JSON lines or a JSON list.

    Raises ValueError naming file and line, and for unknown columns what was found and what each format needs.
    """
    rows = _rows(path)
    first = rows[0][1]
    known = next((format for format in FORMATS if set(format.columns) <= set(first)), None)
    if known is None:
        allowed = "; ".join(f"{format.name}: {', '.join(format.columns)}" for format in FORMATS)
        place = rows[0][0] if path.endswith((".json", ".jsonl")) else f"{path}, line 1"
        raise ValueError(f"{place}: the columns are {', '.join(first)}{_nearest(list(first))}; allowed: {allowed}")
    found = []
    for number, (place, row) in enumerate(rows):
        if lacking := [column for column in known.columns if column not in row]:
            raise ValueError(f"{place}: no key {lacking[0]!r}; allowed: {known.name}'s {', '.join(known.columns)}")
        if (request := known.request(place, number, row)) is not None:
            found.append((place, request))
    if not found:
        raise ValueError(f"{path}: no row is a behavior; allowed: at least one")
    return found


def _rows(path: str) -> list[tuple[str, dict[str, str]]]:
    """(place, row) of a file."""
    if path.endswith(".jsonl"):
        found = [(f"{path}, line {line}", row) for line, row in files.read_jsonl(path)]
    elif path.endswith(".json"):
        value = files.read_json(path)
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ValueError(f"{path}: found a {type(value).__name__}; allowed: a list of objects, one per behavior")
        found = [(f"{path}, entry {number}", row) for number, row in enumerate(value, 1)]
    else:
        return [(f"{path}, line {line}", row) for line, row in files.read_csv(path, ())]
    if not found:
        raise ValueError(f"{path}: no behavior; allowed: at least one")
    return [(place, {key: _text(value) for key, value in row.items()}) for place, row in found]


def _text(value: Any) -> Any:
    """A value of JSON as a CSV would have it: a number's digits, nothing for null; other kinds stay, and are errors where they are read."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _nearest(columns: list[str]) -> str:
    """A hint at the column that is misspelt, of the format that lacks the fewest; "" where none is."""
    for format in sorted(FORMATS, key=lambda format: len(set(format.columns) - set(columns))):
        needed = {name.lower(): name for name in format.columns if name not in columns}
        for column in (column for column in columns if column not in format.columns):
            for near in difflib.get_close_matches(column.lower(), needed, 1, 0.75):
                return f" (did you mean to rename {column!r} to {needed[near]!r}?)"
    return ""
