"""JailbreakBench: `Goal`, `Target`, `Behavior` (a short name, the id), `Category`."""

from dat_jax.data.files import require_text
from dat_jax.data.formats.format import Format, Request


def request(path: str, line: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names file, line and column."""
    return Request(
        id=require_text(path, line, "Behavior", row["Behavior"]),
        text=require_text(path, line, "Goal", row["Goal"]),
        target=require_text(path, line, "Target", row["Target"]),
        category=row.get("Category", ""),
    )


FORMAT = Format("JailbreakBench", ("Goal", "Target", "Behavior"), request)
