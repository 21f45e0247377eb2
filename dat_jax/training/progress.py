"""A run's progress for people: a line every few seconds."""

import logging
import time
from typing import Any


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
