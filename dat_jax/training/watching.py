"""Measurements during a training, and what they decide: whether it collapsed, which step's weights are kept apart, when it ends early."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from dat_jax import checkpoints as checkpoints_lib
from dat_jax import sharding
from dat_jax.checkpoints import Checkpoints, TrainState
from dat_jax.data import manifest
from dat_jax.data.metrics import Metrics
from dat_jax.training import best as best_lib
from dat_jax.training.best import Standing

APART, BEST = "best", "best.json"  # of a training folder: the steps that were the best so far, and what was measured at the newest
Watch = Callable[[Any, Any], dict[str, float]]  # (params, lora) -> rates on benign and borderline prompts, and of what attacks broke


@dataclasses.dataclass
class Watcher:
    """Makes the measurements of one training; what it has decided follows from metrics.jsonl, or best.json where that was deleted.

    With config.training.best_refusals the weights of the best measurement lie in best/STEP. As many steps stay there as there are
    checkpoints: whichever of these a killed run goes on from, what was the best until then is there.
    """

    name: str
    folder: epath.Path
    training: Any  # the config's group of that name
    watch: Watch | None
    log: Metrics
    checkpoints: Checkpoints
    about: Mapping[str, Any]
    standing: Standing = dataclasses.field(default_factory=Standing)
    collapsed: bool = False
    stopped: int = 0  # the step after which the training is to end early; 0: it is not

    @property
    def chooses(self) -> bool:
        """Whether the best step's weights are kept apart; each measured step then has a checkpoint, too."""
        return self.watch is not None and self.training.best_refusals >= 0

    def due(self, step: int) -> bool:
        """Whether a measurement is made after a step."""
        every = self.training.watch_every
        return bool(every) and (step % every == 0 or step == self.training.steps)

    def go_on(self, state: TrainState, weights: tuple[Any, Any]) -> None:
        """Reads what earlier calls measured up to the restored step, and makes the measurement of that step where a kill prevented it.

        Raises ValueError naming the file where the weights of the best step are gone or damaged. Every process must call.
        """
        step = int(state.step)
        self.collapsed = (self.log.last("watch/benign_refused") or 0.0) > self.training.collapse
        if not step or self.watch is None:
            return
        lines = self.log.of("watch/")
        there = next((line for line in lines if line["step"] == step), None)
        missing = bool(sharding.agreed(self.due(step) and there is None))
        if self.chooses:
            said = self._said()
            if said and said["step"] < step and not any(best_lib.measured(line) for line in lines):
                lines = [{"step": said["step"], **said["rates"]}, *lines]
            standing = best_lib.standing(lines, self.training.best_refusals)
            self.standing = Standing.of(sharding.agreed(standing.numbers).tolist())
            if self.standing.best and self.standing.best.step < step:
                checkpoints_lib.kept(self.folder / APART, self.standing.best.step)
            elif self.standing.best and not missing:  # the call was killed before these weights were written
                self._keep(state, _rates(there))
            self._judge_end(state)
        if missing:
            self.measure(step, state, weights)

    def measure(self, step: int, state: TrainState, weights: tuple[Any, Any]) -> None:
        """Measures after a step, writes it down, and keeps the weights where they are the best so far. Every process must call."""
        if self.watch is None:
            return
        rates = self.watch(*weights)
        self.log.write(step, rates)
        self.log.flush()
        logging.info("%s: after step %d  %s", self.name, step, "  ".join(f"{k.split('/')[-1]} {v:.2f}" for k, v in rates.items()))
        self.collapsed = rates.get("watch/benign_refused", 0.0) > self.training.collapse
        if self.collapsed:
            limit = 100 * self.training.collapse
            logging.warning("%s: COLLAPSED: the model refuses more than %.0f %% of the benign prompts", self.name, limit)
        new = best_lib.measured({"step": step, **rates}) if self.chooses else None
        if new is not None:
            self.standing = best_lib.after(self.standing, new, self.training.best_refusals)
            if self.standing.best == new:
                self._keep(state, rates)
            self._judge_end(state)

    def _said(self) -> dict[str, Any] | None:
        """What best.json says; None where there is none, and on the processes that write nothing."""
        return manifest.read(self.folder / BEST) if jax.process_index() == 0 and (self.folder / BEST).exists() else None

    def _keep(self, state: TrainState, rates: Mapping[str, float]) -> None:
        self.checkpoints.wait()  # first a checkpoint to go on from: what was the best before may go now
        step = int(state.step)
        checkpoints_lib.keep(self.folder / APART, step, state.trainable, dict(self.about), self.training.keep)
        if jax.process_index() == 0:
            manifest.write(self.folder / BEST, {"step": step, "rates": dict(rates)})

    def _judge_end(self, state: TrainState) -> None:
        step = int(state.step)
        if step < self.training.steps and best_lib.stops(self.standing, self.training.patience):
            self.stopped = step
            self.checkpoints.save(state, dict(self.about), force=True)  # of a skipped step there is none yet
            logging.info("%s: ends after step %d of %d: %s", self.name, step, self.training.steps, self._why())

    def _why(self) -> str:
        return f"no better measurement in {self.training.patience} in a row"

    def summary(self) -> dict[str, Any]:
        """What finished.json says of it: how it ended, and which weights are to be used.

        Raises ValueError naming the file where these are gone or damaged. Every process must call.
        """
        said: dict[str, Any] = {"collapsed": self.collapsed}
        if self.stopped:
            said |= {"steps": self.stopped, "steps_asked": self.training.steps, "stopped": self._why()}
        if not self.chooses:
            return said
        if self.standing.best is None:
            limit = 100 * self.training.best_refusals
            logging.warning("%s: no measurement refused at most %.0f %%: the weights of the last step are used", self.name, limit)
            return said | {"used": "last"}
        step = self.standing.best.step
        checkpoints_lib.kept(self.folder / APART, step)
        logging.info("%s: the weights of step %d are used, the best measured", self.name, step)
        if jax.process_index() == 0:
            before = self._said() or {"step": 0, "rates": {}}
            line = next((line for line in self.log.of("watch/") if line["step"] == step), None)
            rates = _rates(line) if line else before["rates"]
            if before["step"] != step:  # of a step that a killed call had reached
                manifest.write(self.folder / BEST, {"step": step, "rates": rates})
            said["collapsed"] = rates.get("watch/benign_refused", 0.0) > self.training.collapse
        return said | {"used": "best", "used_step": step}


def _rates(line: Mapping[str, Any] | None) -> dict[str, float]:
    """What a line of metrics.jsonl has of a measurement."""
    return {key: value for key, value in (line or {}).items() if key.startswith("watch/")}
