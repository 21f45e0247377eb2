"""What a format of behavior files is: the columns by which it is known, and how a row of it is read."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """A row of a behaviors file."""

    id: str
    text: str  # the behavior alone: refusals are matched by it
    context: str = ""  # what the request is about, where the file has one
    target: str = ""  # the beginning of a harmful response, where the file has one
    category: str = ""
    refusal: str = ""  # of the request, where the file has one
    tags: str = ""  # HarmBench's, with ", " between


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of FORMATS. request(place, number, row) -> Request, or None for a row that is no behavior.

    place names file and line or entry for errors; number counts the rows from 0. It raises ValueError naming place and column.
    """

    name: str
    columns: tuple[str, ...]  # all of them are there in a file of this format, and not all of them in one of a later row of the table
    request: Callable[[str, int, dict[str, str]], Request | None]


def optional(place: str, key: str, row: dict[str, Any]) -> str:
    """A column that a row may lack; ValueError names place and column where it is no text."""
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: {key} is {value!r:.80}; allowed: a text")
    return value
