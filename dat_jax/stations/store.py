"""What is kept of a batch of behaviors before it is done: an attack's own progress, and the answers that are there."""

import io
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim
from dat_jax.data import files, manifest
from dat_jax.data.answers import checksum

SAVE_EVERY = 60.0  # seconds between two savings of the answers within a batch; all of them are written each time


class FileStore:
    """An attack's progress on a batch of behaviors, in one file that is gone when the batch is answered; see `attacks.attack.Store`."""

    def __init__(self, path: epath.Path, batch: Sequence[str]):
        """`batch`: the ids at hand; progress on other ones is not loaded."""
        self._path, self._batch = path, np.frombuffer(json.dumps(list(batch)).encode(), np.uint8)

    def load(self) -> dict[str, np.ndarray]:
        """Returns what was saved last, {} at first."""
        if not self._path.exists():
            return {}
        try:
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as found:
                arrays = dict(found)
            whole = str(arrays.pop("checksum")) == self._checksum(arrays)
        except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            whole = False
        if not whole:
            logging.warning("%s was damaged, or an earlier version wrote it: the attack on this batch begins anew", self._path)
            return {}
        return arrays if np.array_equal(arrays.pop("batch"), self._batch) else {}

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Replaces what was saved; process 0 alone."""
        if jax.process_index() == 0:
            buffer, kept = io.BytesIO(), {"batch": self._batch, **{name: np.asarray(value) for name, value in arrays.items()}}
            np.savez(buffer, **kept, checksum=np.asarray(self._checksum(kept)))  # type: ignore[arg-type]
            files.write_bytes(self._path, buffer.getvalue())

    @staticmethod
    def _checksum(arrays: dict[str, np.ndarray]) -> str:
        return manifest.of_json([[name, str(x.dtype), x.shape, manifest.digest(x.tobytes())] for name, x in sorted(arrays.items())])

    def clear(self) -> None:
        """Removes the file."""
        if jax.process_index() == 0:
            self._path.unlink(missing_ok=True)


def answered(
    victim: Victim, attempts: Sequence[Attempt], store: FileStore, key: Any, progress: Callable[[int], None] = lambda done: None,
    whole: bool = False,
) -> list[str]:  # fmt: skip
    """The victim's answers; those that an interrupted call gave to the same attempts are read from the store.

    key: what the answers depend on beside the attempts' texts. progress: as for `Victim.answer`. whole: whether they are
    saved at the end, too, because the caller does not write them at once.
    """
    about = checksum(key, [(a.behavior, a.prompt, a.prefill, a.tokens) for a in attempts])
    saved = store.load()
    known = json.loads(saved["texts"].tobytes()) if str(saved.get("about")) == about else {}
    texts, last = {int(row): text for row, text in known.items()}, time.monotonic()

    def note(done: int) -> None:
        nonlocal last
        progress(done)
        if whole if done == len(attempts) else time.monotonic() - last >= SAVE_EVERY:
            store.save({"about": np.array(about), "texts": np.frombuffer(json.dumps(texts).encode(), np.uint8)})
            last = time.monotonic()

    return victim.answer(attempts, note, texts)
