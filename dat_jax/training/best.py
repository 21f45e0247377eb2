"""Which measurement of a training is the best, and when to stop for want of a better one: decisions on numbers alone.

The order is worst-case success first: of the measurements whose refusals are within the bound the one with the lowest `watch/broken`, then
the one with fewer refusals, then the later one. A later one that is equal in both is used, but is no progress: patience runs on.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BROKEN = "watch/broken"  # share of the watched behaviors that at least one attack broke
REFUSED = ("watch/benign_refused", "watch/borderline_refused")
MILLION = 1_000_000  # shares are compared in millionths: as metrics.jsonl has them, so that a resumed run decides as an undisturbed one


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measurement as far as it decides, shares in millionths."""

    step: int
    broken: int
    refused: int  # the larger share of benign and borderline prompts

    def better(self, other: "Measured | None") -> bool:
        """Whether it is to be used in place of an earlier one."""
        return other is None or (self.broken, self.refused) <= (other.broken, other.refused)

    def progress(self, other: "Measured | None") -> bool:
        """Whether it is better than an earlier one by more than being later."""
        return other is None or (self.broken, self.refused) < (other.broken, other.refused)


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a training knows after some measurements."""

    best: Measured | None = None  # None: none was within the bound
    without: int = 0  # measurements since the last progress, or since the start

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The same as integers, to be told to other processes."""
        best = self.best or Measured(0, 0, 0)
        return best.step, best.broken, best.refused, self.without

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Standing":
        """The standing that has these numbers."""
        step, broken, refused, without = (int(number) for number in numbers)
        return cls(Measured(step, broken, refused) if step else None, without)


def measured(line: Mapping[str, Any]) -> Measured | None:
    """The measurement in a line of metrics.jsonl, with its step; None where the line is of something else."""
    if line.get(BROKEN) is None:
        return None
    refused = [line[name] for name in REFUSED if line.get(name) is not None]
    return Measured(int(line["step"]), _millionths(line[BROKEN]), _millionths(max(refused, default=0.0)))


def after(standing: Standing, new: Measured, limit: float) -> Standing:
    """The standing after one more measurement; limit: the largest share of refusals."""
    if new.refused > _millionths(limit) or not new.better(standing.best):
        return Standing(standing.best, standing.without + 1)
    return Standing(new, 0 if new.progress(standing.best) else standing.without + 1)


def standing(lines: Iterable[Mapping[str, Any]], limit: float) -> Standing:
    """The standing after all measurements among these lines, in the order of their steps."""
    found = Standing()
    for new in filter(None, map(measured, lines)):
        found = after(found, new, limit)
    return found


def stops(standing: Standing, patience: int) -> bool:
    """Whether a training is to end: there was no progress in so many measurements in a row; patience 0: never."""
    return bool(patience) and standing.without >= patience


def _millionths(share: float) -> int:
    return round(share * MILLION)
