"""A run's measurements: JSON lines, TensorBoard events, and a line of progress for people."""

import json
import logging
import math
import time
from typing import Any

import tensorboardX
from etils import epath

from dat_jax.data import files, metrics


class Metrics:
    """Writes metrics.jsonl and events below a folder (process 0 alone); lines of steps that will be run again are dropped at the start."""

    def __init__(self, folder, step: int, writes: bool = True):
        """`step`: the number of steps the restored state has done; later lines belong to a run that was killed.

        Raises ValueError where lines of the steps before are gone or others than were written.
        """
        self._path = epath.Path(folder) / metrics.LINES
        self._writes = writes
        self._lines = []
        self._events: Any = None
        if writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if step:
                metrics.check(self._path.parent)
            if self._path.exists() and self._path.stat().length:
                self._lines = [line for line in files.read_text(str(self._path)).splitlines() if _step(line, step + 1) <= step]
            metrics.write(self._path.parent, self._lines, shrinks=True)
            self._events = tensorboardX.SummaryWriter(str(self._path.parent / "events"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and the same values as scalars."""
        if not self._writes:
            return
        numbers = {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}  # JSON knows no NaN
        line = json.dumps({"step": step, **numbers})
        self._lines.append(line)
        if not files.is_remote(self._path):
            with self._path.open("a") as file:
                file.write(line + "\n")
        elif len(self._lines) % 20 == 0:  # objects in a bucket cannot be appended to
            self.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def count(self, name: str) -> int:
        """How many lines have a number of that name that is not 0, those of calls before this one too; 0 where another process writes."""
        return sum(bool(json.loads(line).get(name)) for line in self._lines)

    def flush(self) -> None:
        """Makes everything written so far durable."""
        if self._writes:
            metrics.write(self._path.parent, self._lines)
            self._events.flush()

    def last(self, name: str) -> float | None:
        """The newest value of this name, also of the calls before; None where there is none, and on the processes that write nothing."""
        return next((row[name] for row in map(json.loads, reversed(self._lines)) if name in row), None)

    def of(self, beginning: str) -> list[dict[str, Any]]:
        """The lines that have a value whose name begins so, of the calls before too; [] on the processes that write nothing."""
        return [row for row in map(json.loads, self._lines) if any(name.startswith(beginning) for name in row)]

    def close(self) -> None:
        """Flushes and ends the event file."""
        self.flush()
        if self._events is not None:
            self._events.close()


def _step(line: str, torn: int) -> int:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return torn  # a line that a killed run left half written


class Progress:
    """Logs at most one line every few seconds: step, loss terms, tokens/s, time left."""

    def __init__(self, name: str, first: int, total: int, tokens_per_step: int, shown: tuple[str, ...], seconds: float = 5.0):
        """`first`: steps done before this process; `tokens_per_step`: positions of all rows, padding too; `shown`: metrics in a line."""
        self._name, self._total, self._tokens, self._shown, self._seconds = name, total, tokens_per_step, shown, seconds
        self._first, self._started, self._said = first, time.monotonic(), 0.0
        self._pace: float | None = None  # seconds per step, compilation left out
        self._last = self._started

    def step(self, step: int, values: dict[str, Any]) -> float:
        """Notes that a step is done; returns tokens/s since the first step of this process (0 for the first, which compiles)."""
        now = time.monotonic()
        if step == self._first + 1:
            logging.info("%s: first step after %.0f s, with compilation", self._name, now - self._started)
            self._started = now
            return 0.0
        self._pace = (now - self._started) / (step - self._first - 1)
        if now - self._said >= self._seconds or step == self._total:
            self._said = now
            terms = "  ".join(f"{key.split('/')[-1]} {values[key]:.3f}" for key in self._shown)
            left = self._pace * (self._total - step)
            logging.info(
                "%s: step %d/%d  %s  %.0f tokens/s  %.0f s left", self._name, step, self._total, terms, self._tokens / self._pace, left
            )
        return self._tokens / self._pace
