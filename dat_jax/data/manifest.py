"""What finished files hold, so that damage is noticed when they are read, and never becomes another result.

Every JSON object that a run writes has the key "manifest": a checksum of the object itself and, where it stands for files beside it, their
rows, bytes and checksums, and what they were made from. It is written after them, and whole, so its presence says that they are complete.

    {..., "manifest": {"format": 1, "files": {"direct.jsonl": {"rows": 6, "bytes": 812, "checksum": "..."}}, "checksum": "..."}}

Files that grow while a run goes on also have a digest per line ("lines"). A kill between the lines and their manifest then leaves lines
that the manifest does not know, which are left out, and no damage.
"""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from dat_jax.data import files

KEY, FORMAT, BLOCK = "manifest", 1, 1 << 20
LINE_BYTES = 6  # of a line's digest: a run has millions of lines at most, and damage is no adversary
REMEDY = "put it back as it was, or delete both to have them made again"
Entry = dict[str, Any]  # of a file: bytes, checksum, of JSON lines also rows

_told: set[str] = set()  # folders of which was said that nothing in them can be checked


def digest(data: bytes, size: int = 16) -> str:
    """Returns BLAKE2b of so many bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def of_json(value: Any) -> str:
    """Returns the digest of anything that JSON can hold, whatever the order of its keys."""
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def of_bytes(name: str, data: bytes, grows: bool = False) -> Entry:
    """Returns what a manifest says of a file with this content; grows: with a digest per line."""
    entry: Entry = {"rows": data.count(b"\n")} if name.endswith(".jsonl") else {}
    entry |= {"bytes": len(data), "checksum": digest(data)}
    return entry | ({"lines": " ".join(digest(line, LINE_BYTES) for line in _lines(data))} if grows else {})


def of_file(path: epath.PathLike) -> Entry:
    """Returns what a manifest says of a file, which is read in blocks."""
    path, rows, size, sum_ = epath.Path(path), 0, 0, hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sum_.update(block)
            rows, size = rows + block.count(b"\n"), size + len(block)
    return ({"rows": rows} if path.name.endswith(".jsonl") else {}) | {"bytes": size, "checksum": sum_.hexdigest()}


def of_folder(folder: epath.PathLike, keep: Any = lambda name: True) -> dict[str, Entry]:
    """Returns the entries of all files below a folder whose name, relative to it, is to be kept."""
    names = sorted(name for name in _below(epath.Path(folder), "") if keep(name))
    return {name: of_file(epath.Path(folder) / name) for name in names}


def write(path: epath.PathLike, content: Mapping[str, Any], entries: Mapping[str, Entry] | None = None, made_from: Any = None) -> None:
    """Writes a JSON object with its manifest, whole; `entries` are of files beside it, by their names relative to its folder."""
    part: dict[str, Any] = {"format": FORMAT}
    part |= {"files": dict(entries)} if entries else {}
    part |= {"made_from": made_from} if made_from is not None else {}
    plain = json.loads(json.dumps(content, default=str))
    sealed = {**plain, KEY: part | {"checksum": of_json([plain, part])}}
    files.write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")


def write_rows(path: epath.PathLike, rows: Iterable[Mapping[str, Any]], grows: bool = False) -> Entry:
    """Writes a JSON-lines file, whole, and returns its entry for the manifest that is to follow."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    files.write_bytes(path, data)
    return of_bytes(epath.Path(path).name, data, grows)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A JSON object as it was read, and what it says of the files beside it."""

    path: epath.Path
    content: dict[str, Any]  # without the key of the manifest
    part: dict[str, Any] | None  # None: written before there were manifests, or by hand

    @property
    def entries(self) -> dict[str, Entry]:
        """What it says of each file; {} where it says nothing."""
        return (self.part or {}).get("files", {})

    def check(self, remedy: str = REMEDY) -> "Manifest":
        """Returns itself; ValueError naming the first file that is gone or does not hold what was written."""
        for name, entry in self.entries.items():
            file = self.path.parent / name
            if not file.exists():
                raise ValueError(f"{file} is gone: {self.path.name} beside it says that {said(entry)} were written; {remedy}")
            if file.stat().length != entry["bytes"] or of_file(file)["checksum"] != entry["checksum"]:
                raise self.differs(file, of_file(file), entry, remedy)
        return self

    def rows(self, name: str, needed: tuple[str, ...] = (), remedy: str = REMEDY) -> list[dict[str, Any]]:
        """Returns the lines of a JSON-lines file beside it, those that the manifest knows, in its order.

        Raises ValueError where one of these is gone or another one.
        """
        file, entry = self.path.parent / name, self.entries.get(name)
        if entry is None:
            return [row for _, row in files.read_jsonl(str(file), needed)] if file.stat().length else []
        found = self.check_lines(name, remedy)
        more = len(found) - len(entry["lines"].split()) if "lines" in entry else 0
        if more:
            logging.warning("%s: %d lines are left out that came after %s was written: a call was killed", file, more, self.path.name)
            known = {digest(line, LINE_BYTES): line for line in found}
            found = [known[line] for line in entry["lines"].split()]  # in the order in which they were written
        text = b"\n".join(found).decode()
        return [row for _, row in files.parse_jsonl(text, str(file), needed)]

    def check_lines(self, name: str, remedy: str = REMEDY) -> list[bytes]:
        """Returns all lines of a JSON-lines file beside it that grows; ValueError where one that the manifest knows is not there."""
        file, entry = self.path.parent / name, self.entries[name]
        if not file.exists():
            raise ValueError(f"{file} is gone: {self.path.name} beside it says that {said(entry)} were written; {remedy}")
        data = file.read_bytes()
        found, wanted = _lines(data), entry.get("lines", "").split()
        if digest(data) != entry["checksum"]:
            missing = collections.Counter(wanted) - collections.Counter(digest(line, LINE_BYTES) for line in found)
            if "lines" not in entry or missing or len(found) == len(wanted):
                raise self.differs(file, of_bytes(file.name, data), entry, remedy)
        return found

    def differs(self, file: epath.Path, found: Entry, entry: Entry, remedy: str) -> ValueError:
        """The error that says what a file holds and what was written."""
        return ValueError(
            f"{file} was cut, damaged or edited: it has {said(found)}; {self.path.name} beside it says that {said(entry)} were written; "
            f"{remedy}"
        )


def load(path: epath.PathLike, remedy: str = "put it back as it was, or delete it to have it made again") -> Manifest:
    """Reads a JSON object and checks it against its own checksum; one without a manifest is accepted, with a warning per folder.

    Raises ValueError naming the file where it is no object or was damaged or edited.
    """
    path = epath.Path(path)
    value = files.read_json(str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; allowed: the object that was written there; {remedy}")
    known = KEY in value
    part = value.pop(KEY, None)
    if not known:
        say_unchecked(path.parent)
        return Manifest(path, value, None)
    checksum = part.pop("checksum", None) if isinstance(part, dict) else None
    if isinstance(part, dict) and isinstance(part.get("format"), int) and part["format"] > FORMAT:
        raise ValueError(f"{path} has format {part['format']}, of a later version; allowed: {FORMAT}; update this package")
    if checksum != (now := of_json([value, part])):
        raise ValueError(f"{path} was damaged or edited: its content has the checksum {now}, and {checksum} was written; {remedy}")
    return Manifest(path, value, part)


def read(path: epath.PathLike) -> dict[str, Any]:
    """Returns the content of a JSON object, checked as `load` does."""
    return load(path).content


def check(path: epath.PathLike, remedy: str = REMEDY) -> Manifest:
    """Reads a manifest and checks every file that it stands for."""
    return load(path).check(remedy)


def whole(path: epath.PathLike, *names: str) -> bool:
    """Whether a manifest and the files beside it are there; says what is gone where some of them are. Their content is not read."""
    path = epath.Path(path)
    there = {name: (path.parent / name).exists() for name in (path.name, *names)}
    if any(there.values()) and not all(there.values()):
        gone, rest = (", ".join(name for name, found in there.items() if found == kept) for kept in (False, True))
        logging.warning("%s: %s is there and %s is not, lost or not written before a kill: made again", path.parent, rest, gone)
    return all(there.values())


def say_unchecked(folder: epath.PathLike) -> None:
    """Warns, once per folder, that files there have no checksums."""
    if str(folder) not in _told:
        _told.add(str(folder))
        logging.warning("%s: files there were written without checksums, by an earlier version or by hand: damage is not noticed", folder)


def said(entry: Entry) -> str:
    """A file's entry in words."""
    rows = f"{entry['rows']} lines, " if "rows" in entry else ""
    return f"{rows}{entry['bytes']} bytes with the checksum {entry['checksum']}"


def _lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line]


def _below(folder: epath.Path, prefix: str) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}"
