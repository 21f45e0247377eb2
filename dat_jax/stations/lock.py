"""One owner of a work directory at a time: a file that names host, process and time, renewed while its owner works.

A lock whose owner is gone is broken by the next call: of the same machine when the process is not alive, or its number is another
program's; of another machine when it has not renewed the file for SILENT seconds. Each change is a compare-and-swap: on a disk under the
kernel's lock on the file, in a bucket by the generation of the object (https://cloud.google.com/storage/docs/request-preconditions).
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import jax
from etils import epath

from dat_jax import sharding
from dat_jax.data import files

NAME = "lock.json"
BEAT = 20.0  # seconds between two renewals
LATE = 60.0  # seconds without renewal after which another machine's owner may be gone: who comes then waits and sees
SILENT = 180.0  # seconds without renewal after which it is gone
SIZE = 1024  # bytes of the file on a disk: it is filled up with blanks, so that a new text overwrites all of the old one
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what flock says on file systems that have none


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a work directory."""

    host: str
    machine: str  # tells machines of one name apart, and containers of one machine; "" where the system does not say
    pid: int
    started: str  # when the process began, in the kernel's clock; a number that was given anew has another one
    token: str  # of this call: a process may make several
    since: str  # UTC
    beat: float  # seconds since 1970, of the last renewal

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which has it since {self.since}"


class Place(Protocol):
    """Where a lock lies."""

    def read(self) -> tuple[Any, str]:
        """Returns (version, text); the text is "" where there is none."""

    def swap(self, version: Any, text: str) -> bool:
        """Writes the text, or removes the lock for "", if the version is still the one that was read; returns whether it was."""


def myself() -> Owner:
    """This call as an owner."""
    now = time.time()
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return Owner(socket.gethostname(), machine(), os.getpid(), began(os.getpid()) or "", uuid.uuid4().hex, since, now)


def machine() -> str:
    """What tells this machine's process numbers from another's: the boot and the namespace of processes; "" where /proc is not there."""
    boot, space = pathlib.Path("/proc/sys/kernel/random/boot_id"), pathlib.Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {os.readlink(space)}" if boot.exists() and os.path.lexists(space) else ""


def began(pid: int) -> str | None:
    """When a process of this machine began, "" where the system does not say; None when there is none of that number, or it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's, so it is there
        return _start_of(pid)
    return _start_of(pid)


def _start_of(pid: int) -> str | None:
    try:  # proc(5): state and start time are fields 3 and 22; the name before them may hold blanks and brackets
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if machine() else ""  # it has just ended, or there is no /proc
    return None if fields[0] in "ZX" else fields[19]  # one that nobody has waited for yet does nothing any more


def silent(owner: Owner, here: Owner) -> float:
    """Returns for how long the owner has been silent, in seconds: 0.0 when it lives, infinite when it is known to be gone."""
    if owner.machine == here.machine and owner.host == here.host:
        return 0.0 if began(owner.pid) == owner.started else float("inf")
    return max(time.time() - owner.beat, 0.0)


def owner_of(workdir: epath.Path) -> str:
    """Who works in a work directory now, in words; "" where nobody does, or its owner is gone. Nothing is written."""
    found = _owner(_place(workdir).read()[1])
    return str(found) if found and silent(found, myself()) < SILENT else ""


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Holds the work directory while the block runs. Every process must call; process 0 alone has the lock.

    Raises ValueError, naming the owner, where another call has it. A folder that was made for the lock and got nothing else is removed.
    """
    error, stack = "process 0 found another owner of the work directory", contextlib.ExitStack()
    with stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(_held(workdir))
                error = ""
            except ValueError as caught:
                error = str(caught)
        if not sharding.agreed(not error):
            raise ValueError(error)
        yield


@contextlib.contextmanager
def _held(workdir: epath.Path) -> Iterator[None]:
    made = not files.is_remote(workdir) and not workdir.exists()
    place, owner, ended = _place(workdir), myself(), threading.Event()
    take(place, owner, workdir)
    beating = threading.Thread(target=_beat, args=(place, owner, ended, workdir), daemon=True, name="lock")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        try:
            release(place, owner)
            if made and not any(workdir.iterdir()):
                workdir.rmdir()
        except OSError as error:  # what the block has to say is more than this, and the next call breaks the lock
            logging.warning("%s: the lock was not removed: %s", workdir, error)


def release(place: Place, owner: Owner) -> None:
    """Removes the lock if it is still the owner's."""
    version, text = place.read()
    found = _owner(text)
    if found and found.token == owner.token:
        place.swap(version, "")


def take(place: Place, owner: Owner, workdir: epath.Path) -> None:
    """Makes `owner` the owner; waits while it is not known whether another machine's owner is gone. Raises ValueError where it is not."""
    waited = False
    while True:
        version, text = place.read()
        found = _owner(text)
        quiet = silent(found, owner) if found else float("inf")
        if found and found.token == owner.token:  # the answer to our own request was lost, and it was sent again
            return
        if quiet >= SILENT:
            if place.swap(version, _text(owner)):
                if text.strip():
                    logging.warning("%s: the lock of %s is broken: its owner is gone", workdir, found or "a call that was killed")
                return
        elif found and quiet < LATE:
            raise ValueError(f"{workdir} is in use by {found}; wait for it, end it, or use another --workdir")
        else:
            if not waited:
                said = (workdir, found, quiet, SILENT - quiet)
                logging.info("%s is in use by %s and silent for %.0f s; waiting %.0f s for a sign of life", *said)
            waited = True
            time.sleep(1.0)


def _beat(place: Place, owner: Owner, ended: threading.Event, workdir: epath.Path) -> None:
    """Renews the lock until the end; a run whose lock was taken ends as if it were told to."""
    while not ended.wait(BEAT):
        try:
            version, text = place.read()
            found = _owner(text)
            if found and found.token == owner.token:
                place.swap(version, _text(dataclasses.replace(owner, beat=time.time())))
                continue
        except OSError as error:  # the disk or the network: the next beat may get through
            logging.debug("%s: the lock was not renewed: %s", workdir, error)
            continue
        except ValueError:
            found = None
        logging.error("%s: the lock is %s now; this run ends", workdir, f"of {found}" if found else "gone")
        os.kill(os.getpid(), signal.SIGTERM)
        return


def _text(owner: Owner) -> str:
    return json.dumps(dataclasses.asdict(owner))


def _owner(text: str) -> Owner | None:
    """The owner that a lock names; None where there is no text, as a call leaves it that is killed before it writes any."""
    if not text.strip():
        return None
    try:
        found = Owner(**json.loads(text))
        if all(isinstance(getattr(found, field.name), field.type) for field in dataclasses.fields(found)):  # type: ignore[arg-type]
            return found
    except (json.JSONDecodeError, TypeError) as error:
        logging.debug("not a lock: %s", error)
    raise ValueError(f"{NAME} in the work directory is no lock of this version; delete it if nothing else uses the folder")


def _place(workdir: epath.Path) -> Place:
    return _Bucket(str(workdir / NAME)) if files.is_remote(workdir) else _Disk(str(workdir / NAME))


class _Disk:
    """A lock in a folder. The text is its own version, compared while the kernel's lock on the file is held."""

    def __init__(self, path: str):
        self._path = path

    def read(self) -> tuple[str | None, str]:
        """See `Place`."""
        try:
            file = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return None, ""
        with _exclusive(file):
            text = os.pread(file, SIZE, 0).decode(errors="replace")
        return text, text

    def swap(self, version: str | None, text: str) -> bool:
        """See `Place`."""
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        try:
            file = os.open(self._path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if version is None else 0), 0o644)
        except (FileExistsError, FileNotFoundError):
            return False
        with _exclusive(file):
            # The file may have been removed, and a new one made, before the kernel gave us its lock.
            there = os.path.exists(self._path) and os.path.samestat(os.stat(self._path), os.fstat(file))
            if not there or os.pread(file, SIZE, 0).decode(errors="replace") != (version or ""):
                return False
            if text:
                os.pwrite(file, text.encode().ljust(SIZE), 0)
                os.fsync(file)
            else:
                os.unlink(self._path)
        return True


@contextlib.contextmanager
def _exclusive(file: int) -> Iterator[None]:
    """Holds the kernel's lock on an open file, and closes it; where the file system has none, two that break one lock may collide."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield
    finally:
        os.close(file)


class _Bucket:
    """A lock in a bucket. Its version is the object's generation, 0 where there is none; a request with another one fails (status 412)."""

    def __init__(self, path: str):
        import fsspec  # here: only a workdir in a bucket needs it, and gcsfs with it

        scheme, _, rest = path.partition("://")
        if scheme not in ("gs", "gcs"):
            raise ValueError(f"--workdir={path.removesuffix('/' + NAME)}; allowed: a folder, or gs://BUCKET/FOLDER")
        self._path = path
        self._files: Any = fsspec.filesystem("gs")
        self._bucket, _, self._key = rest.partition("/")

    def read(self) -> tuple[str, str]:
        """See `Place`."""
        try:
            with files.bucket_faults(self._path):
                headers, data = self._files.call("GET", "b/{}/o/{}", self._bucket, self._key, alt="media")
        except FileNotFoundError:
            return "0", ""
        return headers["x-goog-generation"], data.decode(errors="replace")

    def swap(self, version: str, text: str) -> bool:
        """See `Place`."""
        try:
            with files.bucket_faults(self._path):
                self._request(version, text)
        except (FileExistsError, FileNotFoundError):  # gcsfs's names of 412 and 404
            return False
        return True

    def _request(self, version: str, text: str) -> None:
        if not text:
            self._files.call("DELETE", "b/{}/o/{}", self._bucket, self._key, ifGenerationMatch=version)
            return
        upload = f"{self._files.base.replace('/storage/v1/', '/upload/storage/v1/')}b/{{}}/o"
        self._files.call(
            "POST", upload, self._bucket, uploadType="media", name=self._key, ifGenerationMatch=version, data=text.encode()
        )  # fmt: skip
