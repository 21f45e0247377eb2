"""HarmBench and Continuous-AdvTrain: `Behavior`, `BehaviorID`, where present `ContextString`, `Tags`, `Category`, `SemanticCategory`."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and column."""
    del number
    return Request(
        id=require_text_at(place, "BehaviorID", row["BehaviorID"]),
        text=require_text_at(place, "Behavior", row["Behavior"]),
        context=optional(place, "ContextString", row).strip(),
        tags=optional(place, "Tags", row),
        category=optional(place, "Category", row) or optional(place, "SemanticCategory", row),
    )


FORMAT = Format("HarmBench", ("Behavior", "BehaviorID"), request)
