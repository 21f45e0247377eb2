"""The public formats of behavior files, told apart by their columns. A new one is a file here and a row in FORMATS."""

import difflib

from dat_jax.data import files
from dat_jax.data.formats import advbench, harmbench, jailbreakbench, strongreject
from dat_jax.data.formats.format import Format, Request

FORMATS: tuple[Format, ...] = (harmbench.FORMAT, jailbreakbench.FORMAT, advbench.FORMAT, strongreject.FORMAT)


def read_requests(path: str) -> list[tuple[int, Request]]:
    """Returns (line number, request) of a CSV of behaviors in any of FORMATS.

    Raises ValueError naming file and line, and for unknown columns what was found and what each format needs.
    """
    rows = files.read_csv(path, ())
    columns = set(rows[0][1])
    known = next((format for format in FORMATS if set(format.columns) <= columns), None)
    if known is None:
        allowed = "; ".join(f"{format.name}: {', '.join(format.columns)}" for format in FORMATS)
        near = _nearest(list(rows[0][1]))
        raise ValueError(f"{path}, line 1: the columns are {', '.join(rows[0][1])}{near}; allowed: {allowed}")
    return [(line, known.request(path, line, row)) for line, row in rows]


def _nearest(columns: list[str]) -> str:
    """A hint at the column that is misspelt, of the format that lacks the fewest; "" where none is."""
    for format in sorted(FORMATS, key=lambda format: len(set(format.columns) - set(columns))):
        needed = {name.lower(): name for name in format.columns if name not in columns}
        for column in (column for column in columns if column not in format.columns):
            for near in difflib.get_close_matches(column.lower(), needed, 1, 0.75):
                return f" (did you mean to rename {column!r} to {needed[near]!r}?)"
    return ""
