"""Steps whose loss or gradient is not finite: the train step has passed them over; here they are counted, told of and kept."""

import collections
import dataclasses
import io
import logging
import math
import statistics
from typing import Any

import jax
import numpy as np
from etils import epath

from dat_jax import sharding
from dat_jax.data import files, pipeline
from dat_jax.data.conversations import Conversations

LATEST = 50  # sound steps whose gradient norms are remembered
GREW = 10.0  # times the median of those before: the gradients grew before they were not finite
CAUSES = ("attack/", "nll/", "loss/")  # beginnings of the names of numbers in the order in which a step computes them


@dataclasses.dataclass(frozen=True)
class Fed:
    """What a step was given, kept until its numbers are known."""

    batch: pipeline.Batch
    rows: pipeline.AdversarialRows  # of which the batch holds some, as below
    utility: Conversations


class Faults:
    """Counts the skipped steps in a row, and ends a training that does nothing else."""

    def __init__(self, name: str, folder: epath.Path, config: Any, seed: int):
        """name, folder: of the method; config: the whole configuration."""
        self._name, self._folder, self._data, self._seed = name, folder, config.data, seed
        self._limit = min(config.training.faults, config.training.steps)  # a run of skipped steps alone is no training
        self._norms: collections.deque[float] = collections.deque(maxlen=LATEST)
        self.streak = 0  # steps skipped since the last that was not

    def note(self, step: int, values: dict[str, float], fed: Fed) -> None:
        """Takes a step's numbers; every process must call. Raises ValueError, with all that is known, for one skipped step too many."""
        if not values["skipped"]:
            self.streak = 0
            self._norms.append(values["gradient_norm"])
            return
        self.streak += 1
        logging.warning("%s: step %d is skipped: %s is %s", self._name, step, first := first_fault(values), values[first])
        if self.streak < self._limit:
            return
        numbers = pipeline.row_numbers(fed.rows, fed.utility, self._data, self._seed, step)
        path = self._folder / f"fault_{step}.npz"
        keep(path, fed, numbers, values)
        loss = values["loss/total"]
        what = f"the gradient's norm is {values['gradient_norm']}" if math.isfinite(loss) else f"the loss is {loss}"
        raise ValueError(
            f"{self._name}: {what} at step {step}, and with it {self.streak} steps in a row were skipped; allowed: fewer than "
            f"config.training.faults = {self._limit}. The first number that is not finite is {first} = {values[first]}. "
            f"The step's rows are {described(fed, numbers)}; all of it is in {path}{self._growth()}"
        )

    def _growth(self) -> str:
        """What the gradients did before: said only where they grew, as nothing else speaks for a smaller learning rate."""
        *before, last = self._norms or (0.0,)
        usual = statistics.median(before) if before else math.inf
        if last <= GREW * usual:
            return ""
        return f". The gradient's norm grew from {usual:.3g} to {last:.3g} before: a smaller config.training.learning_rate may help"


def first_fault(values: dict[str, float]) -> str:
    """The name of the number that was the first, in the order of computation, not to be finite; several of one kind by name."""

    def rank(name: str) -> int:
        ranks = {"loss/total": len(CAUSES), "gradient_norm": len(CAUSES) + 1}
        return ranks.get(name, next((place for place, start in enumerate(CAUSES) if name.startswith(start)), len(CAUSES)))

    odd = sorted(name for name, value in values.items() if not math.isfinite(value))
    return min(odd, key=rank, default="gradient_norm")  # their sum alone may overflow


def described(fed: Fed, numbers: dict[str, list[int]]) -> str:
    """The rows of a step in words: behaviors by their ids, where these are known."""
    ids = dict.fromkeys(fed.rows.ids[number] for number in numbers["adversarial"]) if fed.rows.ids else {}
    named = f"of the behaviors {', '.join(map(repr, ids))}, " if ids else ""
    adversarial, utility = (", ".join(map(str, numbers[kind])) for kind in ("adversarial", "utility"))
    return f"{named}adversarial rows {adversarial} and utility rows {utility}, counted from 0"


def keep(path: epath.Path, fed: Fed, numbers: dict[str, list[int]], values: dict[str, float]) -> None:
    """Writes a step's arrays, their rows' numbers and what came of them as .npz; every process must call, process 0 writes."""
    arrays = {
        f"{group}.{field.name}": sharding.on_host(getattr(rows, field.name))
        for group, rows in (("away", fed.batch.away), ("toward", fed.batch.toward), ("utility", fed.batch.utility))
        for field in dataclasses.fields(rows)
    }
    arrays |= {f"rows.{kind}": np.array(found) for kind, found in numbers.items()}
    if fed.rows.ids:
        arrays["rows.ids"] = np.array([fed.rows.ids[number] for number in numbers["adversarial"]])
    arrays |= {f"metrics.{name.replace('/', '.')}": np.array(value) for name, value in values.items()}
    if jax.process_index() == 0:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        files.write_bytes(path, buffer.getvalue())
