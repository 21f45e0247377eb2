"""The table of malformed inputs: what is wrong in each, and the one line that it ends with.

A row per line in the modules beside this one, which stand for the ways into the program. `tests/test_malformed.py` runs all rows, and
writes docs/malformed_inputs.md from them. In a message `...` stands for words of another program, and FOLDER for where the files lie.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from dat_jax.config import check_arguments, defaults, validate


@dataclasses.dataclass(frozen=True)
class Row:
    """One malformed input."""

    entry: str  # which way into the program
    what: str  # how it is made, for a reader
    run: Callable[[pathlib.Path], Any]  # makes it in an empty folder and reads it
    message: str


def short(value: Any) -> str:
    """A value for the page."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 110 else f"{text[:100]} ... ({len(text)} characters)"


def configured() -> Any:
    """A configuration without fault."""
    config = defaults()
    config.target.model = config.sampler.model = "m"
    config.data.update({"behaviors": "b", "targets": "t", "chats": "c", "eval_behaviors": "e"})
    return config


def put(config: Any, key: str, value: Any) -> Any:
    """Sets a dotted key, as a config file does: without a check of its type."""
    *groups, name = key.split(".")
    place = config
    for group in groups:
        place = place[group]
    with place.ignore_type():
        place[name] = value
    return config


def setting(entry: str, key: str, value: Any, message: str) -> Row:
    """A value of a key; the message says after "config.KEY is VALUE; allowed: "."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        put(config, key, value)
        validate(config)

    return Row(entry, f"config.{key} = {value!r}", run, message)


def argument(entry: str, text: str, message: str) -> Row:
    """A word of the command line."""
    return Row(entry, text, lambda folder: check_arguments([text]), message)


def file(entry: str, read: Callable[[str], Any], name: str, content: Any, message: str, what: str = "", before: Any = None) -> Row:
    """A file of this content (text, bytes, or what JSON makes a text of); None: no such file. before: what else lies in the folder."""

    def run(folder: pathlib.Path) -> None:
        for other, text in (before or {}).items():
            (folder / other).write_text(text)
        if content is not None:
            data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        read(str(folder / name))

    said = "it is not there" if content is None else short(content if isinstance(content, str | bytes) else json.dumps(content))
    return Row(entry, f"{name}: {what or said}", run, message)
