"""Checkpoints (Orbax v1): trainable weights, optimizer state and what the run is, as separate items; restored onto any mesh.

Order of precedence at the start of a run:
1. the newest checkpoint of its own folder that is whole, which continues it; newer ones that are not are named in a warning, and go;
2. none there: the model as loaded.
Checkpoints that are there, none of them whole, are an error, never a silent restart. Whole is a step whose files are those of its
checksums.json, which is written when Orbax has written all others.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import flax.struct
import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from dat_jax import sharding
from dat_jax.data import manifest, provenance

policies = ocp.training.save_decision_policies
CHECKSUMS = "checksums.json"


@flax.struct.dataclass
class TrainState:
    """What training changes: the step, the trainable weights (LoRA factors, or all weights), the optimizer's state, a method's memory."""

    step: jax.Array
    trainable: Any
    optimizer: Any
    memory: Any = ()  # what a method keeps from step to step; most keep nothing

    @property
    def items(self) -> dict[str, Any]:
        """What a checkpoint has of it beside its number: the parts that hold something."""
        parts = {"trainable": self.trainable, "optimizer": self.optimizer, "memory": self.memory}
        return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


class Checkpoints:
    """The checkpoints of one run's folder; a context manager that waits for the last save before it leaves."""

    def __init__(self, folder, save_every: int, keep: int):
        """Saves every `save_every` steps, and when the platform announces a preemption; keeps the newest `keep`."""
        self._folder = epath.Path(folder)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=policies.AnySavePolicy(
                [policies.FixedIntervalPolicy(save_every), policies.PreemptionCheckpointingPolicy()]
            ),
            preservation_policy=ocp.training.preservation_policies.LatestN(n=keep),
            cleanup_tmp_directories=True,
        )
        # A thread of its own: a step counts from its checksums on, and they are not to wait for the next save.
        self._sealer = futures.ThreadPoolExecutor(1, "checksums")
        self._sealing: futures.Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        try:
            with storage_faults():
                self._checkpointer.close()
                self._sealed()
        finally:
            self._sealer.shutdown()

    def save(self, state: TrainState, about: dict[str, Any], force: bool = False) -> None:
        """Saves a state after its step, if that is due or forced; returns while the files are being written."""
        step = int(state.step)
        if force and any(c.step == step for c in self._checkpointer.checkpoints):
            return
        if not force and not self._checkpointer.should_save(step):
            return
        items = state.items | {"about": json.loads(json.dumps(about))}
        with storage_faults():  # of this save, or of the last one
            self._sealed()  # before older steps are removed
            saving = self._checkpointer.save_checkpointables_async(step, items, force=force)
        if saving is not None and jax.process_index() == 0:
            self._sealing = self._sealer.submit(seal, saving, self._folder / str(step))

    def wait(self) -> None:
        """Returns when the files of the last save are complete, its checksums among them."""
        with storage_faults():
            self._checkpointer.wait()
            self._sealed()

    def _sealed(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def restore(self, state: TrainState, about: dict[str, Any]) -> TrainState:
        """Returns the newest whole checkpoint in the shapes and shardings of `state`, or `state` itself where there is none.

        Newer ones that are not whole are removed: the run comes to their steps again. Raises ValueError when the checkpoint belongs to
        another run (`about` differs), naming the key, or when there are some and none is whole, naming the file.
        """
        found = newest(self._folder, [c.step for c in self._checkpointer.checkpoints])
        if found is None:
            return state
        same_run(f"the checkpoint of step {found.step}", found.about, about)
        with reading_faults(found):
            items = self._checkpointer.load_checkpointables(found.step, abstract(state.items))
        for step in found.left:
            self._checkpointer.delete(step)
        step = jax.device_put(jax.numpy.asarray(found.step, state.step.dtype), state.step.sharding)
        return state.replace(step=step, **items)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole."""

    folder: epath.Path  # of this step
    step: int
    about: dict[str, Any]  # method, seed, model, LoRA rank and alpha
    left: tuple[int, ...] = ()  # newer steps that are not whole


def seal(saving: Any, folder: epath.Path) -> None:
    """Waits until a step's files are written, and then writes their checksums beside them."""
    saving.result()
    manifest.write(folder / CHECKSUMS, {}, manifest.of_folder(folder))


def fault(folder: epath.Path) -> str:
    """Why a step is not whole, with the file; "" where its files are those that were written."""
    if not (folder / CHECKSUMS).exists():
        return f"{folder} has no {CHECKSUMS}: the call that wrote it was killed"
    try:
        manifest.check(folder / CHECKSUMS, "it can not be used")
    except ValueError as error:
        return str(error)
    return ""


def newest(folder: epath.Path, steps: Sequence[int]) -> Found | None:
    """Returns the newest of these steps that is whole, saying which newer ones are not; None where there are no steps.

    Where no step at all has checksums, as the version before left them, the newest is taken, with a warning. Every process must call;
    process 0 reads. Raises ValueError naming a file where there are steps and none is whole.
    """
    steps, faults = sorted(steps, reverse=True), []
    if not steps:
        return None
    if jax.process_index() == 0:
        for step in steps:
            if not (problem := fault(folder / str(step))):
                break
            faults.append(problem)
    chosen = len(faults)
    if faults and not any((folder / str(step) / CHECKSUMS).exists() for step in steps):
        chosen = 0
        logging.warning("%s, or an earlier version wrote it: step %d is used unchecked", faults[0], steps[0])
    chosen = int(sharding.agreed(chosen))
    if chosen == len(steps):
        more = faults[0] if faults else "see what process 0 says of it"
        raise ValueError(
            f"{folder}: no checkpoint is whole, of {', '.join(map(str, reversed(steps)))}: {more}. Put the file back as it was, or delete "
            "the folder that holds checkpoints/ to train again"
        )
    for problem in faults[:chosen]:
        logging.warning("%s; step %d, the last whole one, is used", problem, steps[chosen])
    place = Found(folder / str(steps[chosen]), steps[chosen], {}, tuple(steps[:chosen]))
    with reading_faults(place):
        about = ocp.load_checkpointables(place.folder, {"about": None})["about"]
    return dataclasses.replace(place, about=about)


def same_run(what: str, saved: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises ValueError naming the first key in which a checkpoint's run is not this one.

    A model is known by its weights wherever they lie, or by its name where one of the two has no files. What the version before wrote has
    its path, of which the name is taken.
    """
    if "model" in saved:
        saved = saved | {"model": str(saved["model"]).rstrip("/").split("/")[-1]}
    free: tuple[str, ...] = ("model" if saved.get("weights") and about.get("weights") else "weights", "checkpoint")
    free += () if "base_dtype" in saved else ("base_dtype",)  # which earlier versions do not record
    provenance.compare(what, saved, about, "use a new folder", free)


@contextlib.contextmanager
def storage_faults() -> Iterator[None]:
    """Makes an OSError of the ValueError by which tensorstore reports a failed write: trying again may help, mending the call does not."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"a checkpoint was not written: {error}") from error


@contextlib.contextmanager
def reading_faults(found: Found) -> Iterator[None]:
    """Makes a ValueError that names the step of whatever Orbax raises for a file that is gone or damaged, where no checksum told before."""
    try:
        yield
    except (ValueError, KeyError, TypeError, FileNotFoundError, NotImplementedError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{found.folder} can not be read: {first[:300]}. Put its files back as they were, or delete that folder to go on from the step "
            "before"
        ) from error


def abstract(tree):
    """Returns shapes, dtypes and shardings of a tree of arrays: what Orbax needs to restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def read(folder) -> Found:
    """Returns the newest whole checkpoint of a run; ValueError where there is none. Every process must call."""
    folder = epath.Path(folder)
    with ocp.training.Checkpointer(folder) as checkpointer:
        found = newest(folder, [c.step for c in checkpointer.checkpoints])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint; run --mode=train first")
    return found


def keep(folder, step: int, trainable: Any, about: dict[str, Any], most: int) -> None:
    """Writes trainable weights alone as a step of a folder, and removes all but its newest `most` steps; returns when that is done.

    Every process must call.
    """
    folder = epath.Path(folder)
    place = folder / str(step)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        place.rmtree(missing_ok=True)  # of a call that was killed
    sharding.agreed(step)  # nobody writes before that is gone
    with storage_faults():
        ocp.save_checkpointables(place, {"trainable": trainable, "about": json.loads(json.dumps(about))})
    if jax.process_index() == 0:
        manifest.write(place / CHECKSUMS, {}, manifest.of_folder(place))
        others = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit() and int(path.name) != step), reverse=True)
        for other in [number for number in others if number < step][most - 1 :]:
            (folder / str(other)).rmtree(missing_ok=True)
    sharding.agreed(step)


def kept(folder, step: int) -> Found:
    """Returns a step that `keep` wrote; ValueError naming the file where it is not whole. Every process must call; process 0 reads."""
    place = Found(epath.Path(folder) / str(step), step, {})
    problem = fault(place.folder) if jax.process_index() == 0 else ""
    if sharding.agreed(bool(problem)):
        raise ValueError(
            f"{problem or f'{place.folder} is not whole, see what process 0 says'}. The weights of step {step} are the best measured, "
            f"and no others take their place: put the file back as it was, or delete {place.folder.parent.parent} to train again"
        )
    with reading_faults(place):
        about = ocp.load_checkpointables(place.folder, {"about": None})["about"]
    return dataclasses.replace(place, about=about)


def load_trainable(folder, shapes, found: Found | None = None):
    """Returns the trainable weights of the newest whole checkpoint in the given shapes and shardings; the optimizer's state is not read.

    found: what `read` returned, not to check it again.
    """
    found = found or read(folder)
    with reading_faults(found):
        return ocp.load_checkpointables(found.folder, {"trainable": shapes})["trainable"]
