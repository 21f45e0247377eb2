"""What a table of the report is."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """One table: the first column names its rows."""

    section: str  # of the page, see page.SECTIONS
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False  # on the page one click away
