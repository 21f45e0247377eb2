"""JailbreakBench: `Goal`, `Target`, `Behavior` (a short name, the id), `Category`."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and column."""
    del number
    return Request(
        id=require_text_at(place, "Behavior", row["Behavior"]),
        text=require_text_at(place, "Goal", row["Goal"]),
        target=require_text_at(place, "Target", row["Target"]),
        category=optional(place, "Category", row),
    )


FORMAT = Format("JailbreakBench", ("Goal", "Target", "Behavior"), request)
