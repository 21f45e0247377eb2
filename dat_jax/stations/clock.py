"""How long an evaluation still takes."""

import time
from collections.abc import Sequence


class Clock:
    """Time left, from the seconds per behavior of the latest job of a kind: attacks that search cost many times plain text."""

    def __init__(self, todo: Sequence[tuple[bool, int]]):
        """`todo`: of all jobs, whether they are slow, and the behaviors or prompts that are to be answered."""
        self._left = {kind: sum(count for slow, count in todo if slow == kind) for kind in (False, True)}
        self._pace: dict[bool, float] = {}
        self._last = self._spoken = time.monotonic()

    def note(self, slow: bool, items: int) -> None:
        """Counts behaviors or prompts as done, which took all the time since the last call."""
        now = time.monotonic()
        self._pace[slow], self._last, self._spoken = (now - self._last) / items, now, now
        self._left[slow] -= items

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing was said for so long; the question counts as speaking."""
        if time.monotonic() - self._spoken < seconds:
            return False
        self._spoken = time.monotonic()
        return True

    def left(self) -> str:
        """The time for what is left, in words."""
        if not any(self._left.values()):
            return "finished"
        seconds = sum(count * self._pace.get(kind, 0.0) for kind, count in self._left.items())
        if not seconds:
            return "time left not known yet"
        return f"{'about' if all(kind in self._pace for kind, count in self._left.items() if count) else 'more than'} {seconds:.0f} s left"
