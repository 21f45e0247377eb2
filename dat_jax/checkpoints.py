"""Checkpoints (Orbax v1): trainable weights, optimizer state and what the run is, as separate items; restored onto any mesh.

Order of precedence at the start of a run:
1. the newest checkpoint of its own folder, which continues it;
2. none there: the model as loaded.
A checkpoint that is there and cannot be read is an error, never a silent restart.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from dat_jax.data import provenance

policies = ocp.training.save_decision_policies


@flax.struct.dataclass
class TrainState:
    """What training changes: the step, the trainable weights (LoRA factors, or all weights) and the optimizer's state."""

    step: jax.Array
    trainable: Any
    optimizer: Any


class Checkpoints:
    """The checkpoints of one run's folder; a context manager that waits for the last save before it leaves."""

    def __init__(self, folder, save_every: int, keep: int):
        """Saves every `save_every` steps, and when the platform announces a preemption; keeps the newest `keep`."""
        self._checkpointer = ocp.training.Checkpointer(
            epath.Path(folder),
            save_decision_policy=policies.AnySavePolicy(
                [policies.FixedIntervalPolicy(save_every), policies.PreemptionCheckpointingPolicy()]
            ),
            preservation_policy=ocp.training.preservation_policies.LatestN(n=keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with storage_faults():
            self._checkpointer.close()

    def save(self, state: TrainState, about: dict[str, Any], force: bool = False) -> None:
        """Saves a state after its step, if that is due or forced; returns while the files are being written."""
        step = int(state.step)
        if force and any(c.step == step for c in self._checkpointer.checkpoints):
            return
        items = {"trainable": state.trainable, "optimizer": state.optimizer, "about": json.loads(json.dumps(about))}
        with storage_faults():  # of this save, or of the last one
            self._checkpointer.save_checkpointables_async(step, items, force=force)

    def wait(self) -> None:
        """Returns when the files of the last save are complete."""
        with storage_faults():
            self._checkpointer.wait()

    def restore(self, state: TrainState, about: dict[str, Any]) -> TrainState:
        """Returns the newest checkpoint in the shapes and shardings of `state`, or `state` itself where there is none.

        Raises ValueError when the checkpoint belongs to another run (`about` differs), naming the key.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state
        saved = self._checkpointer.load_checkpointables(latest.step, {"about": None})["about"]
        provenance.compare(f"the checkpoint of step {latest.step}", saved, about, "use a new folder")
        shapes = {"trainable": abstract(state.trainable), "optimizer": abstract(state.optimizer)}
        items = self._checkpointer.load_checkpointables(latest.step, shapes)
        step = jax.device_put(jax.numpy.asarray(latest.step, state.step.dtype), state.step.sharding)
        return TrainState(step=step, trainable=items["trainable"], optimizer=items["optimizer"])


@contextlib.contextmanager
def storage_faults() -> Iterator[None]:
    """Makes an OSError of the ValueError by which tensorstore reports a failed write: trying again may help, mending the call does not."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"a checkpoint was not written: {error}") from error


def abstract(tree):
    """Returns shapes, dtypes and shardings of a tree of arrays: what Orbax needs to restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def read_about(folder) -> dict[str, Any]:
    """Returns what the run of the newest checkpoint is: method, seed, model, LoRA rank and alpha."""
    with ocp.training.Checkpointer(epath.Path(folder)) as checkpointer:
        if checkpointer.latest is None:
            raise ValueError(f"{folder}: no checkpoint; run --mode=train first")
        return checkpointer.load_checkpointables(checkpointer.latest.step, {"about": None})["about"]


def load_trainable(folder, shapes):
    """Returns the trainable weights of the newest checkpoint in the given shapes and shardings; the optimizer's state is not read."""
    with ocp.training.Checkpointer(epath.Path(folder)) as checkpointer:
        return checkpointer.load_checkpointables(checkpointer.latest.step, {"trainable": shapes})["trainable"]
