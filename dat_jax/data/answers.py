"""Files of answers: the lines, and beside them what they were made with and which behaviors or prompts are done.

    answers/<subject>/<attack>.jsonl     one line per attempt: method, attack, surface, seed, behavior, prompt, prefill, response;
                                         stub where the judge is not given so many characters of the response's beginning
    answers/<subject>/<attack>.json      made_with (settings, weights), title, surface, done: {behavior id: checksum of what was asked}
    verdicts/<judge>/<subject>/<attack>.jsonl    one line per line of answers: answer (its checksum), label, score
    verdicts/<judge>/<subject>/<attack>.json     of which answers

Each file knows for itself what it was made with, so an attack, a behavior or a judge can be added to a finished run. The .json beside the
lines is their manifest.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from dat_jax.data import files, manifest

Line = dict[str, Any]
LABELS = ("comply", "refuse", "lost")  # of a verdict, see judges/judge.py
UNPARSED = "unparsed"  # says nothing of the answer: what the judge wrote could not be read. Counted by itself, as no label of LABELS
AGAIN = "put it back as it was, or delete both to answer again"


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One answer to be judged."""

    behavior: str  # id of the behavior or utility prompt
    request: str  # the behavior's own text; "" for utility prompts, which ask for nothing that is forbidden
    prompt: str  # what was sent
    prefill: str
    response: str  # with the prefilled beginning
    context: str = ""  # what the request is about, where the behaviors file says it: `request` begins with it


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


def item_of(line: Mapping[str, Any]) -> str:
    """The behavior or prompt that a line is about."""
    return line["behavior"] if "behavior" in line else line["id"]


def read(stem: epath.PathLike) -> Answers:
    """Reads a file of answers; lines that its .json does not call done belong to a call that was killed, and are left out.

    Where one of the two files is gone nothing is done, and that is said. Behaviors without any attempt leave no lines, all of them an empty
    file. Raises ValueError naming the file that was cut, damaged or edited.
    """
    stem = epath.Path(stem)
    if not manifest.whole(stem.parent / f"{stem.name}.json", f"{stem.name}.jsonl"):
        return Answers(stem, {}, [])
    found = manifest.load(stem.parent / f"{stem.name}.json", AGAIN)
    files.require_keys(str(found.path), 1, list(found.content), ["done"], "key")
    done = found.content["done"]
    if not isinstance(done, dict):
        raise ValueError(f"{found.path}: done is {done!r:.80}; allowed: an object of ids and checksums; {AGAIN}")
    lines = found.rows(f"{stem.name}.jsonl", remedy=AGAIN) if found.entries or done else []
    for number, line in enumerate(lines, 1):
        if "measure" in line:  # of stations/measure.py: numbers, and no prompt
            continue
        needed = ("prompt", "response") if "behavior" in line else ("id", "prompt", "response")
        files.require_keys(f"{stem}.jsonl", number, list(line), needed, "key")
    return Answers(stem, found.content, [line for line in lines if item_of(line) in done])


def read_all(folder: epath.Path) -> list[Answers]:
    """Reads all files of answers of a subject; ValueError where one of two files that belong together is gone."""
    found = stems(folder)
    for stem in found:
        for suffix, other in ((".json", ".jsonl"), (".jsonl", ".json")):
            if not (stem.parent / f"{stem.name}{suffix}").exists():
                raise ValueError(
                    f"{stem}{suffix} is gone, and {stem.name}{other} is there: answers were lost; run --mode=evaluate to answer again, or "
                    "delete both"
                )
    return [read(stem) for stem in found]


def write(answers: Answers) -> None:
    """Writes the lines and then what is done, so that a kill between the two loses no more than the last batch; process 0 alone."""
    if jax.process_index() != 0:
        return
    stem = answers.stem
    entry = manifest.write_rows(stem.parent / f"{stem.name}.jsonl", answers.lines, grows=True)
    manifest.write(stem.parent / f"{stem.name}.json", answers.about, {f"{stem.name}.jsonl": entry})


def stems(folder: epath.Path) -> list[epath.Path]:
    """The stems of all files of answers below a subject's folder, the attacks' first, then those of utility/."""
    found: list[epath.Path] = []
    for sub in (folder, folder / "utility"):
        found += [sub / name for name in sorted({p.name.removesuffix(s) for s in (".json", ".jsonl") for p in sub.glob(f"*{s}")})]
    return found


def verdicts_stem(folder: epath.Path, answers: Answers) -> epath.Path:
    """Where the verdicts on a file of answers are, below a judge's folder of a subject; without suffix."""
    return (folder / "utility" if "set" in answers.about else folder) / answers.stem.name


def read_verdicts(stem: epath.PathLike, required: bool = False) -> dict[str, Line]:
    """Returns the verdicts by the checksum of the answer; {} where there are none, or where one of the two files is gone, which is said.

    required: files that belong together and are not both there are an error. Raises ValueError naming the file that was damaged or edited,
    or the line whose label or score is none.
    """
    stem = epath.Path(stem)
    about, lines = stem.parent / f"{stem.name}.json", stem.parent / f"{stem.name}.jsonl"
    remedy = "put it back as it was, or delete both to judge again"
    if about.exists() and not lines.exists() and required:
        raise ValueError(f"{lines} is gone, and {about.name} is there: verdicts were lost; run --mode=judge to judge again, or delete both")
    if about.exists():
        rows = manifest.load(about, remedy).rows(lines.name, remedy=remedy) if manifest.whole(about, lines.name) else []
    elif lines.exists():  # of the version before, or the first batch before a kill
        manifest.say_unchecked(stem.parent)
        rows = [row for _, row in files.read_jsonl(str(lines))] if lines.stat().length else []
    else:
        rows = []
    for number, row in enumerate(rows, 1):
        files.require_keys(str(lines), number, list(row), ["answer", "label", "score"], "key")
        if row["label"] not in (*LABELS, UNPARSED):
            raise ValueError(f"{lines}, line {number}: label is {row['label']!r}; allowed: {' | '.join(LABELS)}; {remedy}")
        if not isinstance(row["score"], int | float) or not 0 <= row["score"] <= 1:
            raise ValueError(f"{lines}, line {number}: score is {row['score']!r}; allowed: a number from 0 to 1; {remedy}")
    return {row["answer"]: row for row in rows}


def require_judge(marker: epath.Path) -> None:
    """Raises ValueError where a folder has verdicts and no judge.json that says whose they are."""
    folder = marker.parent
    if not marker.exists() and folder.is_dir() and any(stems(path) for path in folder.iterdir() if path.is_dir()):
        raise ValueError(f"{marker} is gone: nobody knows whose verdicts these are; put it back, or delete that folder to judge again")


def write_verdicts(stem: epath.Path, rows: Sequence[Line], answers: Answers) -> None:
    """Writes verdicts and then their manifest; process 0 alone."""
    if jax.process_index() == 0:
        entry = manifest.write_rows(stem.parent / f"{stem.name}.jsonl", rows, grows=True)
        made_from = {"answers": manifest.of_json(answers.lines)}
        manifest.write(stem.parent / f"{stem.name}.json", {}, {f"{stem.name}.jsonl": entry}, made_from)


def checksum(*parts: Any) -> str:
    """A short checksum of anything that JSON can hold."""
    return f"{zlib.crc32(json.dumps(parts, ensure_ascii=False, default=str).encode()):08x}"


def answer_checksum(line: Line) -> str:
    """What a verdict is about: the behavior, what was sent, what came back and how much of that was judged."""
    return checksum(item_of(line), line["prompt"], line.get("prefill", ""), line["response"], *([line["stub"]] if "stub" in line else ()))


def judged(line: Line) -> str:
    """The part of a response that a judge is given: all of it but an announcement that the attack made likely."""
    return line["response"][line["stub"] :].strip() if "stub" in line else line["response"]


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
