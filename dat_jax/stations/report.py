"""The report station: reads what the other stations left in a work directory and writes the report, and other tools' formats."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from dat_jax.report import compare, formats, write
from dat_jax.stations import lock

TRIES = 3  # of reading files that a run is writing meanwhile
SHARE = 20  # a report that took a second is not written again within so many


def run(workdir: epath.Path, config: ConfigDict, owner: str = "") -> None:
    """Writes the report and says where it is and the numbers that matter. No model and none of the run's files are needed.

    config.report: further formats that the answers are written in, and other workdirs to compare with. owner: the process that works in
    the workdir now, of which this is not a part: its answers are read as far as they are there, and partial results said to be partial.
    """
    page = _while_written(workdir, owner)
    logging.info("report: %s", page)
    if config.report.compare:
        logging.info("comparison: %s", compare(workdir, config.report.compare, logging.info, now()))
    if config.report.formats or not owner:
        formats.write(workdir, config.report.formats, logging.info)


def _while_written(workdir: epath.Path, owner: str) -> epath.Path:
    """Writes the report; where a run changes a file between the reading of two, once more."""
    for _ in range(TRIES - 1 if owner else 0):
        try:
            return write(workdir, logging.info, owner, now())
        except ValueError:
            logging.debug("%s changed while it was read", workdir, exc_info=True)
            time.sleep(1.0)
    return write(workdir, logging.info, owner, now())


def now() -> str:
    """The time as readers and browsers understand it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


@contextlib.contextmanager
def written_meanwhile(workdir: epath.Path, minutes: float) -> Iterator[None]:
    """Writes the report every so many minutes while the block runs, by a thread that reads files alone; at its end once more if it had.

    It takes at most a twentieth of the time. A report that cannot be written is said, and stops nothing: the run is worth more. Whoever is
    told to stop does not wait for one.
    """
    if not minutes:
        yield
        return
    ended, begun = threading.Event(), threading.Event()
    writer = threading.Thread(target=_keep_writing, args=(workdir, minutes, ended, begun), daemon=True, name="report")
    writer.start()
    try:
        yield
    finally:
        ended.set()
    writer.join()
    if begun.is_set():  # the last page says that nobody works there any more, and does not load itself anew
        _try(workdir, "")


def _keep_writing(workdir: epath.Path, minutes: float, ended: threading.Event, begun: threading.Event) -> None:
    pause, owner = 60 * minutes, str(lock.myself())
    while not ended.wait(pause):
        started = time.monotonic()
        if _try(workdir, owner):
            begun.set()
        pause = max(60 * minutes, SHARE * (time.monotonic() - started))


def _try(workdir: epath.Path, owner: str) -> bool:
    try:
        write(workdir, working=owner, written=now())
    except Exception as error:  # whatever it is, a report is not worth a run
        logging.info("no report yet: %s", error)
        logging.debug("where it came from", exc_info=True)
        return False
    return True
