"""What a format of behavior files is: the columns by which it is known, and how a row of it is read."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Request:
    """A row of a behaviors file."""

    id: str
    text: str  # the behavior alone: refusals are matched by it
    context: str = ""  # what the request is about, where the file has one
    target: str = ""  # the beginning of a harmful response, where the file has one
    category: str = ""
    by_hash: bool = False  # whether the file's own evaluation compares answers with a text in place of asking a judge


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of FORMATS. request(path, line, row) -> Request; it raises ValueError naming file, line and column."""

    name: str
    columns: tuple[str, ...]  # all of them are there in a file of this format, and not all of them in one of a later row of the table
    request: Callable[[str, int, dict[str, str]], Request]
