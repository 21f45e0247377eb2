"""AdvBench: `goal` and `target`; the row number is the id."""

from dat_jax.data.files import require_text
from dat_jax.data.formats.format import Format, Request


def request(path: str, line: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names file, line and column."""
    text = require_text(path, line, "goal", row["goal"])
    return Request(id=f"advbench_{line - 2}", text=text, target=require_text(path, line, "target", row["target"]))


FORMAT = Format("AdvBench", ("goal", "target"), request)
