"""Reading users' files: every fault is one ValueError that names the file, the line and the key."""

import collections
import contextlib
import csv
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

CLIENTS = ("gcsfs", "aiohttp", "google", "requests")  # packages whose errors a bucket's failures are


def is_remote(path) -> bool:
    """Whether a path is a URL (gs://...) rather than a place on the disk."""
    return "://" in str(path)


@contextlib.contextmanager
def bucket_faults(path) -> Iterator[None]:
    """Makes an OSError that names the object or folder of what a bucket's client raises when its tries are used up.

    gcsfs tries six times, within about a minute, after 408, 429, 5xx and a connection that is cut; its errors are no OSError.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise OSError(f"{path}: the bucket still fails after several tries: {one_line(error)}") from error


def absolute(folder: str) -> str:
    """The absolute path of a local folder, as Orbax wants it; a URL is one already."""
    return folder if is_remote(folder) else os.path.abspath(folder)


def nearest(file: epath.Path) -> str:
    """Returns "; did you mean NAME?" for the file beside it whose name is nearest, "" where none is near."""
    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.iterdir()] if file.parent.exists() else [], 1)
    return f"; did you mean {near[0]}?" if near else ""


def read_text(path: str) -> str:
    """Returns a UTF-8 file's text; a missing, empty or undecodable file is a ValueError."""
    file = epath.Path(path)
    with bucket_faults(path):
        if not file.exists() or file.is_dir():
            raise ValueError(f"{path}: no such file{nearest(file)}")
    with bucket_faults(path):
        data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; allowed: UTF-8 text") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    return text


def require_keys(path: str, line: int, found: Sequence[str], needed: Sequence[str], what: str = "column") -> None:
    """Raises ValueError for the first needed column or key that is absent, with the nearest one found."""
    require_keys_at(f"{path}, line {line}", found, needed, what)


def require_keys_at(place: str, found: Sequence[str], needed: Sequence[str], what: str) -> None:
    """The same at any place of a file, which the message begins with."""
    for key in needed:
        if key not in found:
            near = difflib.get_close_matches(key.lower(), [str(f).lower() for f in found], 1)
            hint = next((f"; did you mean to rename {f!r}?" for f in found if near and str(f).lower() == near[0]), "")
            raise ValueError(f"{place}: no {what} {key!r}; found: {', '.join(map(str, found))}{hint}")


def read_csv(path: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Returns (line number, row) of a CSV with a header that has the needed columns."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: {error}; allowed: the names of columns") from error
    if twice := repeated(names):  # columns without a name, as spreadsheets leave them, are not read by name
        raise ValueError(f"{path}, line 1: the column {twice!r} stands there more than once; allowed: each once")
    require_keys(path, 1, names, needed)
    try:
        for row in reader:
            if None in row or None in row.values():
                count = len([v for k, v in row.items() if k is not None and v is not None]) + len(row.get(None) or [])
                raise ValueError(f"{path}, line {reader.line_num}: {count} fields; allowed: the header's {len(reader.fieldnames or [])}")
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: a header and no rows")
    return rows


def read_json(path: str) -> Any:
    """Returns a JSON file's value."""
    return _parse(read_text(path), path)


def _parse(text: str, path: str, line: int | None = None) -> Any:
    """The value of a JSON text, of a whole file or of its line; each fault is a ValueError that names the place."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"the key {repeated(key for key, _ in pairs)!r} stands in one object more than once")
        return found

    place = path if line is None else f"{path}, line {line}"
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line or error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: lists or objects inside each other too deeply") from error
    except ValueError as error:  # the key above, or a number with more digits than Python reads
        reason = "a number has more digits than are read" if "int_max_str_digits" in str(error) else error
        raise ValueError(f"{place}: {reason}") from error


def read_jsonl(path: str, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of a JSON-lines file whose objects have the needed keys."""
    yield from parse_jsonl(read_text(path), path, needed)


def parse_jsonl(text: str, path: str, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of the text of a JSON-lines file; faults name the path."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: it also splits at U+2028, which JSON may hold
        if not line.strip():
            continue
        value = _parse(line, path, number)
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: found {type(value).__name__}; allowed: an object per line")
        require_keys(path, number, list(value), needed, "key")
        yield number, value


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another program says, on one line and not too long; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def read_parquet(path: str) -> list[tuple[int, dict[str, Any]]]:
    """Returns (row number from 1, row) of a parquet file."""
    import pyarrow  # here: a run on JSON lines does not need its 40 MB
    import pyarrow.parquet

    if not epath.Path(path).exists():
        raise ValueError(f"{path}: no such file")
    data = epath.Path(path).read_bytes()  # whole: an OSError below is of its content, and none of the disk
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a parquet file, or a damaged one: {one_line(error)}") from error
    return list(enumerate(rows, 1))


def repeated(names: Iterable[str]) -> str | None:
    """Returns the first name that occurs more than once, or None."""
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


def require_text(path: str, line: int, key: str, value: Any) -> str:
    """Returns a non-empty string without NUL and without half of a surrogate pair, or raises ValueError."""
    return require_text_at(f"{path}, line {line}", key, value)


def require_text_at(place: str, key: str, value: Any) -> str:
    """The same at any place of a file, which the message begins with."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {key} is {value!r}; allowed: a non-empty text")
    if odd := next((character for character in value if character == "\0" or "\ud800" <= character <= "\udfff"), None):
        raise ValueError(f"{place}: {key} holds {odd!r}; allowed: a text without it")
    return value


def write_text(path, text: str) -> None:
    """Writes a whole UTF-8 file at once, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path, data: bytes) -> None:
    """Writes a whole file at once: a reader, or a run killed half way, never sees a part of it."""
    path = epath.Path(path)
    if is_remote(path):  # in a bucket an object appears when its upload is complete, and renaming is a copy
        with bucket_faults(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
