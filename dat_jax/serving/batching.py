"""Rows that wait are worked on together: one thread that owns the devices, and a queue in front of it."""

import collections
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from dat_jax.serving.requests import Refusal


class Batcher:
    """Gives rows of one shape to `run`, as many at a time as wait, up to `size`; the row that waits longest goes first."""

    def __init__(self, run: Callable[[Sequence[Any]], list[Any]], shape: Callable[[Any], Hashable], size: int, wait: float, most: int):
        """`wait`: seconds that a batch which is not full waits for more rows. `most`: rows that may wait at a time."""
        self._run, self._shape, self._size, self._wait, self._most = run, shape, size, wait, most
        self._queue: collections.deque[tuple[Hashable, Any, concurrent.futures.Future]] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="serve", daemon=True)  # a stopped command does not wait for the devices
        self._thread.start()

    def submit(self, rows: Sequence[Any], begun: bool = False) -> list[concurrent.futures.Future]:
        """Returns the results to come, in the order of the rows. Raises Refusal (429) where too many rows wait already: none is taken.

        begun: rows of a request of which others are done; they are always taken.
        """
        futures: list[concurrent.futures.Future] = [concurrent.futures.Future() for _ in rows]
        with self._changed:
            if self._closed:
                raise Refusal("the server is ending", status=503)
            if not begun and len(self._queue) + len(rows) > self._most:
                raise Refusal(f"{len(self._queue)} answers wait already; allowed: {self._most} (config.serve.waiting)", status=429)
            self._queue.extend((self._shape(row), row, future) for row, future in zip(rows, futures))
            self._changed.notify()
        return futures

    def close(self) -> None:
        """Takes no more rows; those that wait fail."""
        with self._changed:
            self._closed = True
            for _, _, future in self._queue:
                future.cancel()
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            rows, futures = zip(*batch)
            try:
                results = self._run(rows)
            except Exception as error:  # whatever the devices say is the requests' outcome, and the next batch may do better
                logging.exception("serve: a batch of %d failed", len(rows))
                for future in futures:
                    future.set_exception(Refusal(f"the batch failed ({type(error).__name__}); the server's log says why", status=500))
                continue
            for future, result in zip(futures, results):
                future.set_result(result)

    def _next(self) -> list[tuple[Any, concurrent.futures.Future]]:
        """Waits for the next batch and takes it; [] when the queue is closed."""
        with self._changed:
            while not self._closed:
                if not self._queue:
                    self._changed.wait()
                    continue
                until = time.monotonic() + self._wait
                while not self._closed and self._of_first() < self._size and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if taken := self._take():
                    return taken
            return []

    def _take(self) -> list[tuple[Any, concurrent.futures.Future]]:
        """Takes the rows of the first one's shape; those whose client has gone are dropped."""
        taken: list[tuple[Any, concurrent.futures.Future]] = []
        kept: collections.deque[tuple[Hashable, Any, concurrent.futures.Future]] = collections.deque()
        first = self._queue[0][0] if self._queue else None
        for shape, row, future in self._queue:
            if shape != first or len(taken) == self._size:
                kept.append((shape, row, future))
            elif future.set_running_or_notify_cancel():
                taken.append((row, future))
        self._queue = kept
        return taken

    def _of_first(self) -> int:
        return sum(entry[0] == self._queue[0][0] for entry in self._queue) if self._queue else 0
