"""XSTest: `prompt`, `type` and `label`; the unsafe prompts are behaviors, the safe ones are none. The id is `id`, or the row's number."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request | None:
    """Reads a row; ValueError names place and column."""
    if row["label"] not in ("safe", "unsafe"):
        raise ValueError(f"{place}: label is {row['label']!r}; allowed: safe | unsafe")
    text, name = require_text_at(place, "prompt", row["prompt"]), optional(place, "id", row) or str(number)
    return Request(f"xstest_{name}", text, category=optional(place, "type", row)) if row["label"] == "unsafe" else None


FORMAT = Format("XSTest", ("prompt", "type", "label"), request)
