"""SIGINT and SIGTERM: a command that is told to stop ends with one line and a status after which it may be made again.

What is computed is saved as it is made, so an exception at any moment loses no more than a batch. The training loop alone waits for the end
of its step, to save that (`noted`).
"""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

PREEMPTED = 75  # exit status of a command that was told to stop: the same command goes on (EX_TEMPFAIL); launch/supervise.sh makes it again
BOTH = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """Raised in the main thread by a signal; no `except Exception` catches it, and whoever does not catch it ends with status PREEMPTED."""


def listen() -> None:
    """From now on a signal says one line and raises Stopped; the second ends the process at once. To be called in the main thread.

    Several processes leave SIGTERM to jax, which takes it over when they join (see `training.loop.told_to_stop`).
    """
    for number in BOTH:
        signal.signal(number, _stop)
    sys.unraisablehook = functools.partial(_unraised, sys.unraisablehook)


def _unraised(before: Callable[[Any], Any], unraised: Any) -> None:
    """Ends the process where a signal came in a callback of the garbage collector, jax has one: Python drops what is raised there."""
    if isinstance(unraised.exc_value, Stopped):
        os._exit(PREEMPTED)
    before(unraised)


def _stop(number: int, frame: Any) -> NoReturn:
    del frame
    for one in BOTH:
        signal.signal(one, _end)
    _leave(number)


def _leave(number: int) -> NoReturn:
    line = f"dat_jax: {signal.Signals(number).name}; the same command goes on from what is saved\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())  # print may be interrupted by itself here
    raise Stopped(PREEMPTED)


def _end(number: int, frame: Any) -> None:
    del number, frame
    os._exit(PREEMPTED)


def ended(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int | None]:
    """Returns a command's `main` that leaves at once when it was stopped: what jax still computes would crash the interpreter."""

    def run(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except Stopped:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(PREEMPTED)

    return run


class Note:
    """Which signal has come while one was noted; "" for none."""

    def __init__(self) -> None:
        self.name, self._now = "", False

    def take(self, number: int, frame: Any) -> None:
        """The handler of the block: notes the first signal, and lets one that must not wait, or is the second, stop the program."""
        del frame
        if self.name or self._now:
            _leave(number)
        self.name = signal.Signals(number).name

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal raise Stopped in the block, which may take long and needs no end to be saved."""
        if self.name:
            _leave(signal.Signals[self.name])
        self._now = True
        try:
            yield
        finally:
            self._now = False


@contextlib.contextmanager
def noted() -> Iterator[Note]:
    """Notes a signal while the block runs, for who saves and leaves at a place of its own: SIGTERM, and SIGINT where `listen` has it.

    Several processes, and threads other than the main one, note nothing: signals are jax's or their owner's then.
    """
    import jax  # here: `listen` is called before the imports that take seconds

    note = Note()
    with contextlib.ExitStack() as stack:
        for number in BOTH if jax.process_count() == 1 else ():
            if number == signal.SIGINT and signal.getsignal(number) is not _stop:
                continue
            try:
                stack.callback(signal.signal, number, signal.signal(number, note.take))
            except ValueError:  # not the main thread
                break
        yield note
