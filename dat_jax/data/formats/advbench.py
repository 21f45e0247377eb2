"""AdvBench: `goal` and `target`; the row's number is the id."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and column."""
    text = require_text_at(place, "goal", row["goal"])
    return Request(id=f"advbench_{number}", text=text, target=require_text_at(place, "target", row["target"]))


FORMAT = Format("AdvBench", ("goal", "target"), request)
