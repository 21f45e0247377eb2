"""HarmBench and Continuous-AdvTrain: `Behavior`, `BehaviorID`, where present `ContextString`, `Tags`, `Category`, `SemanticCategory`."""

from dat_jax.data.files import require_text
from dat_jax.data.formats.format import Format, Request


def request(path: str, line: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names file, line and column."""
    return Request(
        id=require_text(path, line, "BehaviorID", row["BehaviorID"]),
        text=require_text(path, line, "Behavior", row["Behavior"]),
        context=row.get("ContextString", "").strip(),
        by_hash="hash_check" in row.get("Tags", "").split(", "),
        category=row.get("Category") or row.get("SemanticCategory") or "",
    )


FORMAT = Format("HarmBench", ("Behavior", "BehaviorID"), request)
