"""A user's own file: `id` and `prompt`, and `context`, `target`, `category`, `refusal` where present."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and column."""
    del number
    id, text = (require_text_at(place, key, row[key]) for key in ("id", "prompt"))
    more = {key: optional(place, key, row) for key in ("context", "target", "category", "refusal")}
    return Request(id=id, text=text, **more)


FORMAT = Format("your own", ("id", "prompt"), request)
