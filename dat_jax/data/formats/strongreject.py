"""StrongREJECT: `forbidden_prompt`, `category`, `source`; the row's number is the id, and there is no target."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and column."""
    text = require_text_at(place, "forbidden_prompt", row["forbidden_prompt"])
    return Request(id=f"strongreject_{number}", text=text, category=optional(place, "category", row))


FORMAT = Format("StrongREJECT", ("forbidden_prompt", "category"), request)
