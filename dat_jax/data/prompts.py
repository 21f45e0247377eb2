"""Records of sampled prompts, with where each came from: JSON lines, to be read by eye and by the input pipeline."""

import dataclasses
import json
import typing
from typing import Any

from dat_jax.data import files


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """A prompt x drawn for a response y of a behavior."""

    behavior_id: str
    prompt: str
    response: str
    seed: int
    sampler: str  # the masked-diffusion LM: hub id or folder
    settings: dict[str, Any]  # of the sampler
    log_likelihood: float | None  # of the prompt given the response under the sampler: a lower bound, in nats for the whole prompt
    tokens: int  # of the prompt, in the sampler's tokens
    compliance: float | None  # share of the target's answers that comply, where the target was asked
    selected: bool  # whether it is trained on
    consistency: float | None = None  # by how many nats per token the undefended target finds y likelier after x than after the request


def write_records(path, records: list[PromptRecord]) -> None:
    """Writes one record per line, all at once."""
    files.write_text(path, "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in records))


def read_records(path) -> list[PromptRecord]:
    """Reads records; ValueError names the line and the key that is missing, unknown or of another type."""
    names = [f.name for f in dataclasses.fields(PromptRecord)]
    records = []
    for line, value in files.read_jsonl(str(path), names):
        unknown = set(value) - set(names)
        if unknown:
            raise ValueError(f"{path}, line {line}: unknown key {sorted(unknown)[0]!r}; allowed: {', '.join(names)}")
        for field in dataclasses.fields(PromptRecord):
            if not _fits(value[field.name], field.type):
                kind = getattr(field.type, "__name__", field.type)
                raise ValueError(f"{path}, line {line}: {field.name} is {value[field.name]!r:.80}; allowed: {kind}")
        records.append(PromptRecord(**value))
    return records


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; "false" is a text, and no truth value is a number."""
    kind = typing.get_origin(kind) if typing.get_origin(kind) is dict else kind
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (isinstance(value, int) and kind == float | None)
