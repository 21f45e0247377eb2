"""Records of sampled prompts, with where each came from: JSON lines, to be read by eye and by the input pipeline."""

import dataclasses
import typing
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import sharding
from dat_jax.data import files, manifest

RECORDS, MARKER = "prompts.jsonl", "cost.json"  # of a finished pool; the marker is written last, and is the manifest of the others


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


def write_records(path, records: list[PromptRecord]) -> manifest.Entry:
    """Writes one record per line, all at once, and returns the file's entry for a manifest."""
    return manifest.write_rows(path, (dataclasses.asdict(record) for record in records))


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


def write_pool(folder: epath.Path, records: list[PromptRecord], cost: dict[str, float], beside: dict[str, Any]) -> None:
    """Writes a finished pool, its cost last; every process must call, process 0 writes, and the others wait.

    beside: JSON objects by the names of their files.
    """
    if jax.process_index() == 0:
        entries = {RECORDS: write_records(folder / RECORDS, records)}
        for name, content in beside.items():
            manifest.write(folder / name, content)
            entries[name] = manifest.of_file(folder / name)
        path = folder / "provenance.json"
        manifest.write(folder / MARKER, cost, entries | {path.name: manifest.of_file(path)})
    multihost_utils.sync_global_devices(f"pool {folder.name}")


def complete(folder: epath.Path) -> bool:
    """Whether a folder holds a finished pool; every process must ask, and all get the same answer.

    Raises ValueError naming a file of it that was cut, damaged or edited.
    """
    there = bool(sharding.agreed(manifest.whole(folder / MARKER, RECORDS)))
    if there:
        check_pool(folder)
    return there


def check_pool(folder: epath.PathLike) -> None:
    """Raises ValueError naming the file of a finished pool that is gone, was cut, damaged or edited."""
    folder = epath.Path(folder)
    if not (folder / MARKER).exists():
        raise ValueError(f"{folder / MARKER} is gone, or was not written before a kill: {RECORDS} is there; run --mode=sample again")
    manifest.check(folder / MARKER, "put it back as it was, or delete it and cost.json to have them made again from the samples")


def read_pool(folder: epath.PathLike) -> list[PromptRecord]:
    """Returns the records of a finished pool, checked."""
    check_pool(folder)
    return read_records(epath.Path(folder) / RECORDS)
