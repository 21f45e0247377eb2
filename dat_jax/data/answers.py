"""Files of answers: the lines, and beside them what they were made with and which behaviors or prompts are done.

    answers/<subject>/<attack>.jsonl     one line per attempt: method, attack, surface, seed, behavior, prompt, prefill, response
    answers/<subject>/<attack>.json      made_with (settings, weights), title, surface, done: {behavior id: checksum of what was asked}
    verdicts/<judge>/<subject>/<attack>.jsonl    one line per line of answers: answer (its checksum), label, score

Each file knows for itself what it was made with, so an attack, a behavior or a judge can be added to a finished run.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from dat_jax.data import files

Line = dict[str, Any]


@dataclasses.dataclass
class Answers:
    """One file of answers."""

    stem: epath.Path  # the path without its suffix
    about: dict[str, Any]  # made_with, title, surface, done, asked; {} before the first is written
    lines: list[Line]  # of what is done alone

    @property
    def done(self) -> dict[str, str]:
        """Behavior or prompt id -> checksum of what was asked about it."""
        return self.about.get("done", {})

    @property
    def asked(self) -> list[Line]:
        """The lines of the behaviors or prompts that the last call asked for."""
        wanted = set(self.about.get("asked", self.done))
        return [line for line in self.lines if item_of(line) in wanted]


def item_of(line: Line) -> str:
    """The behavior or prompt that a line is about."""
    return line["behavior"] if "behavior" in line else line["id"]


def read(stem: epath.PathLike) -> Answers:
    """Reads a file of answers; lines that its .json does not call done belong to a call that was killed, and are left out.

    Where one of the two files is gone nothing is done. Behaviors without any attempt leave no lines, all of them an empty file.
    """
    stem = epath.Path(stem)
    about_path, lines_path = (stem.parent / f"{stem.name}{suffix}" for suffix in (".json", ".jsonl"))
    if not about_path.exists() or not lines_path.exists():
        return Answers(stem, {}, [])
    about = files.read_json(str(about_path))
    lines = [line for _, line in files.read_jsonl(str(lines_path))] if about["done"] and lines_path.stat().length else []
    return Answers(stem, about, [line for line in lines if item_of(line) in about["done"]])


def write(answers: Answers) -> None:
    """Writes the lines and then what is done, so that a kill between the two loses no more than the last batch; process 0 alone."""
    if jax.process_index() != 0:
        return
    stem = answers.stem
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers.lines)
    files.write_text(stem.parent / f"{stem.name}.jsonl", text)
    files.write_text(stem.parent / f"{stem.name}.json", json.dumps(answers.about, indent=1, ensure_ascii=False) + "\n")


def stems(folder: epath.Path) -> list[epath.Path]:
    """The stems of all files of answers below a subject's folder, the attacks' first, then those of utility/."""
    return [path.parent / path.name.removesuffix(".json") for sub in (folder, folder / "utility") for path in sorted(sub.glob("*.json"))]


def checksum(*parts: Any) -> str:
    """A short checksum of anything that JSON can hold."""
    return f"{zlib.crc32(json.dumps(parts, ensure_ascii=False, default=str).encode()):08x}"


def answer_checksum(line: Line) -> str:
    """What a verdict is about: the behavior, what was sent and what came back."""
    return checksum(item_of(line), line["prompt"], line.get("prefill", ""), line["response"])


def file_name(name: str) -> str:
    """The name of an attack or judge as a file name: a colon becomes a hyphen."""
    return name.replace(":", "-")


def short_name(source: str) -> str:
    """A name for a folder or hub id that can be a file name: its last part; of RUN/seed_0/METHOD also the run's."""
    parts = [part for part in source.rstrip("/").split("/") if part]
    if len(parts) > 2 and re.fullmatch(r"seed_\d+", parts[-2]):
        parts = [f"{parts[-3]}-{parts[-1]}"]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", parts[-1])


def compared(entry: str) -> tuple[str, str]:
    """The name and the source of an entry of config.evaluation.compare, [NAME=]SOURCE."""
    name, _, source = entry.rpartition("=")
    return name or short_name(source), source


def models_of(settings: Mapping[str, Any]) -> list[str]:
    """The names of the models of a run in the order of its report, from a configuration with dotted keys."""
    found = list(settings.get("training.methods", ()))
    if not found:
        origin = settings.get("target.checkpoint") or settings.get("target.model")
        found = [short_name(origin)] if origin else []
    return found + [compared(entry)[0] for entry in settings.get("evaluation.compare", ())]
