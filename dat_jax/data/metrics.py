"""A training's numbers as they lie in its folder: a line per step, and their manifest, which grows with them."""

import logging
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
