"""StrongREJECT: `forbidden_prompt`, `category`, `source`; the row number is the id, and there is no target."""

from dat_jax.data.files import require_text
from dat_jax.data.formats.format import Format, Request


def request(path: str, line: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names file, line and column."""
    text = require_text(path, line, "forbidden_prompt", row["forbidden_prompt"])
    return Request(id=f"strongreject_{line - 2}", text=text, category=row["category"])


FORMAT = Format("StrongREJECT", ("forbidden_prompt", "category"), request)
