"""Model folders on cloud storage (gs://...): copied whole to and from the local disk, where safetensors can be read by slices."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax
from etils import epath

from dat_jax.data import files

CACHE = "~/.cache/dat_jax"


def fetched(folder: str, suffixes: tuple[str, ...], cache_dir: str | None = None) -> pathlib.Path:
    """Copy a remote folder's files with these suffixes into the cache and return the local folder; unchanged files are kept.

    Raises ValueError when the folder does not exist.
    """
    source = epath.Path(folder)
    if not source.is_dir():
        raise ValueError(f"{folder} is not a folder")
    name = f"{source.name}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
    target = pathlib.Path(cache_dir or os.path.expanduser(CACHE)) / name
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in source.iterdir() if path.suffix in suffixes and not path.is_dir()}
    for path in target.iterdir():
        if path.name not in wanted:
            path.unlink()  # left from an earlier state of the folder
    for name, path in wanted.items():
        local, found = target / name, path.stat()
        state = (found.length, int(found.mtime or 0))
        # without a modification time there is no telling whether the file is the same
        if not state[1] or not local.exists() or (local.stat().st_size, int(local.stat().st_mtime)) != state:
            unfinished = local.with_name(f".{name}.{os.getpid()}")
            _copy(path, epath.Path(unfinished))
            os.utime(unfinished, (state[1], state[1]))
            unfinished.replace(local)
    return target


@contextlib.contextmanager
def written(folder: str) -> Iterator[pathlib.Path]:
    """Yield a local folder to write to: the folder itself, or one that process 0 copies to its remote place at the end."""
    if not files.is_remote(folder):
        target = pathlib.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        yield target
        return
    with tempfile.TemporaryDirectory() as staging:
        yield pathlib.Path(staging)
        if jax.process_index() == 0:
            for path in sorted(pathlib.Path(staging).rglob("*")):
                place = epath.Path(folder) / path.relative_to(staging).as_posix()
                if path.is_file():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _copy(epath.Path(path), place)


def _copy(source: epath.Path, target: epath.Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 24)
