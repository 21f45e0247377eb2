"""A training's numbers as they lie in its folder: a line per step, their manifest, which grows with them, and TensorBoard's events."""

import json
import logging
import math
from typing import Any

from etils import epath

from dat_jax.data import files, manifest

LINES, MARKER = "metrics.jsonl", "metrics.json"
REMEDY = "put it back as it was, or delete metrics.jsonl and metrics.json to go on without the numbers of the steps before"


def present(folder: epath.Path) -> bool:
    """Whether a training has left numbers, or a manifest of some."""
    return (folder / LINES).exists() or (folder / MARKER).exists()


def read(folder: epath.Path, growing: bool = False) -> list[dict[str, Any]]:
    """Returns the lines of a training's numbers; ValueError naming the file where some are gone or others than were written.

    growing: a training writes there now. Its manifest knows the lines of the last checkpoint; the whole ones after them are returned too.
    """
    if growing and (folder / MARKER).exists():
        manifest.load(folder / MARKER, REMEDY).check_lines(LINES, REMEDY)
        text = (folder / LINES).read_bytes()
        return [row for _, row in files.parse_jsonl(text[: text.rfind(b"\n") + 1].decode(), str(folder / LINES))]
    if (folder / MARKER).exists():
        return manifest.load(folder / MARKER, REMEDY).rows(LINES, remedy=REMEDY)
    manifest.say_unchecked(folder)
    path = folder / LINES
    return [row for _, row in files.read_jsonl(str(path))] if path.stat().length else []


def check(folder: epath.Path) -> None:
    """Raises ValueError where lines are gone that the manifest knows; more lines than it knows are no fault: they came after it."""
    if (folder / MARKER).exists():
        manifest.load(folder / MARKER, REMEDY).check_lines(LINES, REMEDY)
    elif (folder / LINES).exists():
        logging.warning("%s has no %s beside it, lost or not written before a kill: its numbers are not checked", folder / LINES, MARKER)


def write(folder: epath.Path, lines: list[str], shrinks: bool = False) -> None:
    """Writes the lines and then their manifest; where lines are taken away, the manifest first: it never knows a line that is not there."""
    data = "".join(line + "\n" for line in lines).encode()
    entry = manifest.of_bytes(LINES, data, grows=True)
    if shrinks:
        manifest.write(folder / MARKER, {}, {LINES: entry})
    files.write_bytes(folder / LINES, data)
    if not shrinks:
        manifest.write(folder / MARKER, {}, {LINES: entry})


class Metrics:
    """Writes metrics.jsonl and events below a folder (process 0 alone); lines of steps that will be run again are dropped at the start."""

    def __init__(self, folder: Any, step: int, writes: bool = True):
        """`step`: the number of steps the restored state has done; later lines belong to a run that was killed.

        Raises ValueError where lines of the steps before are gone or others than were written.
        """
        self._path = epath.Path(folder) / LINES
        self._writes = writes
        self._lines: list[str] = []
        self._events: Any = None
        if writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if step:
                check(self._path.parent)
            if self._path.exists() and self._path.stat().length:
                self._lines = [line for line in files.read_text(str(self._path)).splitlines() if _step(line, step + 1) <= step]
            write(self._path.parent, self._lines, shrinks=True)
            import tensorboardX  # here: readers of the lines do without

            self._events = tensorboardX.SummaryWriter(str(self._path.parent / "events"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and the same values as scalars."""
        if not self._writes:
            return
        numbers = {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}  # JSON knows no NaN
        line = json.dumps({"step": step, **numbers})
        self._lines.append(line)
        if not files.is_remote(self._path):
            with self._path.open("a") as file:
                file.write(line + "\n")
        elif len(self._lines) % 20 == 0:  # objects in a bucket cannot be appended to
            self.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def count(self, name: str) -> int:
        """How many lines have a number of that name that is not 0, those of calls before this one too; 0 where another process writes."""
        return sum(bool(json.loads(line).get(name)) for line in self._lines)

    def flush(self) -> None:
        """Makes everything written so far durable."""
        if self._writes:
            write(self._path.parent, self._lines)
            self._events.flush()

    def last(self, name: str) -> float | None:
        """The newest value of this name, also of the calls before; None where there is none, and on the processes that write nothing."""
        return next((row[name] for row in map(json.loads, reversed(self._lines)) if name in row), None)

    def of(self, beginning: str) -> list[dict[str, Any]]:
        """The lines that have a value whose name begins so, of the calls before too; [] on the processes that write nothing."""
        return [row for row in map(json.loads, self._lines) if any(name.startswith(beginning) for name in row)]

    def close(self) -> None:
        """Flushes and ends the event file."""
        self.flush()
        if self._events is not None:
            self._events.close()


def _step(line: str, torn: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return torn  # a line that a killed run left half written
