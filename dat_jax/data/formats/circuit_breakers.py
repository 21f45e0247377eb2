"""Circuit breakers (circuit_breakers_train.json): `prompt`, a harmful `output`, a refusal `llama3_output`; the row's number is the id."""

from dat_jax.data.files import require_text_at
from dat_jax.data.formats.format import Format, Request, optional


def request(place: str, number: int, row: dict[str, str]) -> Request:
    """Reads a row; ValueError names place and key."""
    text, target, refusal = (require_text_at(place, key, row[key]) for key in ("prompt", "output", "llama3_output"))
    return Request(id=f"circuit_breakers_{number}", text=text, target=target, category=optional(place, "category", row), refusal=refusal)


FORMAT = Format("circuit breakers", ("prompt", "output", "llama3_output"), request)
