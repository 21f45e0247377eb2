"""The training loop of one method: restore, step, measure, save; killed at any moment, the same call goes on where it was."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import checkpoints as checkpoints_lib
from dat_jax import sharding, signals
from dat_jax.checkpoints import Checkpoints, TrainState
from dat_jax.data import files as data_files
from dat_jax.data import manifest, pipeline
from dat_jax.data.conversations import Conversations
from dat_jax.data.metrics import Metrics
from dat_jax.models import huggingface, quantized
from dat_jax.models import lora as lora_lib
from dat_jax.models import weights as weights_lib
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training.faults import Faults, Fed
from dat_jax.training.progress import Progress
from dat_jax.training.step import Defence, StepConfig, optimizer, train_step, weights
from dat_jax.training.watching import APART, Watch, Watcher

LOGITS = 2**25  # numbers of the head's output that a device holds at a time: 128 MiB in float32
PREEMPTED = signals.PREEMPTED  # exit status after a signal was honoured with a checkpoint
FINISHED = "finished.json"  # of a training folder, written last
RowsOfRound = Callable[[int, Any, Any], pipeline.AdversarialRows]  # (round, params, lora) -> what a round trains on; see `train`


def initial_trainable(model: Model, training, seed: int):
    """Returns what is trained: fresh LoRA factors, or with rank 0 the weights themselves (a copy, in float32).

    Raises ValueError for quantized weights with rank 0: their codes are no numbers to train.
    """
    if training.lora.rank:
        return lora_lib.initialize(jax.random.key(seed), model.config, training.lora.rank, training.lora.alpha)
    if (kept := quantized.precision(model.params)) in quantized.KINDS:
        raise ValueError(f"training.lora.rank is 0, which trains all weights, and those of the target are in {kept}; allowed: 1 or more")
    return jax.tree.map(lambda w: jnp.array(w, jnp.float32, copy=True), model.params)


def abstract_trainable(config: ModelConfig, rank: int, alpha: float, mesh) -> Any:
    """Returns what is trained as shapes and shardings: LoRA factors, or with rank 0 all weights; float32."""
    if not rank:
        return weights_lib.abstract(config, "float32", mesh)

    def shape(weight):
        return jax.ShapeDtypeStruct(weight.shape, jnp.float32, sharding=sharding.named_sharding(mesh, weight.axes, weight.shape))

    return lora_lib.Lora(factors=jax.tree.map(shape, lora_lib.table(config, rank)), scale=alpha / rank)


def abstract_state(config: ModelConfig, training, mesh, memory: Any = ()) -> TrainState:
    """Returns the state as shapes and shardings without values: factors and moments are sharded as the weights they belong to.

    memory: what the method keeps, arrays or shapes; every device has all of it.
    """
    whole = sharding.replicated(mesh)
    trainable = abstract_trainable(config, training.lora.rank, training.lora.alpha, mesh)
    placed = {path: leaf.sharding for path, leaf in jax.tree.leaves_with_path(trainable)}

    def place(path, node):  # a moment lies at the end of a path of the optimizer's own, under the weight's path
        home = next((placed[path[start:]] for start in range(len(path)) if node.ndim and path[start:] in placed), whole)
        return jax.ShapeDtypeStruct(node.shape, node.dtype, sharding=home)

    moments = jax.tree.map_with_path(place, jax.eval_shape(optimizer(training).init, trainable))
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), memory)
    return TrainState(step=step, trainable=trainable, optimizer=moments, memory=kept)


def initial_state(model: Model, training, seed: int, mesh, memory: Any = ()) -> TrainState:
    """Returns step 0, placed on the mesh. memory: what the method keeps from step to step."""
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(model.config, training, mesh, memory))
    trainable = jax.tree.map(jax.device_put, initial_trainable(model, training, seed), placed.trainable)
    # Zeros depend on no input, so without a word about it XLA would put them all on one device.
    moments = jax.jit(optimizer(training).init, out_shardings=placed.optimizer)(trainable)
    kept, step = jax.tree.map(jax.device_put, memory, placed.memory), jax.device_put(jnp.zeros((), jnp.int32), placed.step)
    return TrainState(step=step, trainable=trainable, optimizer=moments, memory=kept)


# On a batch in parts over several chips libtpu 0.0.52 ends with an internal error ("overlaps with another chunk") unless this is left out.
IN_PARTS = {"xla_tpu_enable_latency_hiding_scheduler": False}


def compiled_step(state: TrainState, parts: int = 1):
    """Returns the jitted step: state donated, and its shardings kept, so that one compilation serves the whole run.

    parts: that a batch is worked through in, see `StepConfig`.
    """
    kept, static = jax.tree.map(lambda x: x.sharding, state), ("config", "optimizer")
    options = options_of(list(state.step.sharding.device_set), parts)
    return jax.jit(train_step, static_argnames=static, donate_argnames=("state",), out_shardings=(kept, None), compiler_options=options)


def options_of(devices: Sequence[jax.Device], parts: int) -> dict[str, bool] | None:
    """Returns how a step is compiled for these devices with its batch in so many parts; None: as the compiler does of itself."""
    return IN_PARTS if parts > 1 and len(devices) > 1 and devices[0].platform == "tpu" else None


def told_to_stop(step: int, note: signals.Note) -> str:
    """The signal for which to save and leave after this step, or ""; if any process got SIGTERM, all say so after one and the same step."""
    preempted = jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
    return note.name or ("SIGTERM" if preempted else "")


def step_config(model: Model, config, method: Defence) -> StepConfig:
    """Returns the static part of a method's step from the config."""
    rows = config.data.adversarial_rows + config.data.utility_rows
    parts = rows // config.training.micro_batch if config.training.micro_batch else 1
    if method.loss is None:
        raise ValueError(f"{method.name} trains nothing; allowed: a method with a loss")
    return StepConfig(
        model=dataclasses.replace(model.config, keep_products=config.training.keep_products),
        inner=method.inner,
        loss=method.loss,
        settings=method.read_settings(config),
        prompt_length=config.data.prompt_length,
        dropout=config.training.lora.dropout,
        most_logits=LOGITS * max(1, jax.sharding.get_abstract_mesh().size),
        parts=parts,
        updates=method.updates(method.read_settings(config)),
        steps=config.training.steps,
        compares=method.needs_reference(method.read_settings(config)),
    )


class Ledger:
    """Reads a step's numbers while the device works on the next step, writes them, and hands them to `faults`, which may end the run."""

    def __init__(self, log: Metrics, progress: Progress, faults: Faults, training):
        """`training` is the config's group of that name."""
        self._log, self._progress, self._faults, self._training = log, progress, faults, training
        self._pending: tuple[int, dict[str, jax.Array], Fed] | None = None

    def note(self, step: int, values: dict[str, jax.Array], fed: Fed) -> None:
        """Takes the numbers of a step that was started, after settling those of the last."""
        self.settle()
        self._pending = (step, values, fed)

    def settle(self) -> None:
        """Waits for the numbers that were noted and writes them. Raises ValueError when too many steps in a row were not finite."""
        if self._pending is None:
            return
        (step, arrays, fed), self._pending = self._pending, None
        values = {name: float(value) for name, value in arrays.items()}
        pace = self._progress.step(step, values)
        if step % self._training.log_every == 0 or step == self._training.steps or values["skipped"]:
            self._log.write(step, values | {"tokens_per_second": pace})
        if values["skipped"]:
            self._log.flush()  # the line is to be read after an end here, in a bucket too
        self._faults.note(step, values, fed)

    def sound(self) -> bool:
        """Whether the last step was not skipped, and with it the state is one to go on from: skipped steps are to be met again."""
        return self._faults.streak == 0

    def flush(self) -> None:
        """Makes all numbers durable, before a checkpoint: the steps that it covers are not run again, and would have no lines."""
        self.settle()
        self._log.flush()


def train(
    method: Defence,
    model: Model,
    adversarial: RowsOfRound,
    utility: Conversations,
    config,
    seed: int,
    folder,
    mesh,
    watch: Watch | None = None,
    refresh_every: int = 0,
    step_flops: float = 0.0,
    asking_flops: float = 0.0,
) -> None:
    """Trains `model` by a method on the rows and leaves checkpoints, metrics.jsonl, events and finished.json in the folder.

    `adversarial` gives the rows of round 0, and after every `refresh_every` steps those of a new round, for the model as it then is.
    A round's rows must depend on round and model alone, or be kept: then a resumed run sees what an undisturbed one sees.

    step_flops, asking_flops: operations by formula, of a step and of what the target was asked before; finished.json has them.

    Must run under `jax.set_mesh(mesh)`. Exits with status PREEMPTED after saving when a signal arrives. Raises ValueError when
    config.training.faults steps in a row are not finite: the last checkpoint before them stays.
    """
    folder, training, data, name = epath.Path(folder), config.training, config.data, method.name
    about = {"method": name, "seed": seed, "steps": training.steps, **origin(model)}
    about |= {"lora_rank": training.lora.rank, "lora_alpha": training.lora.alpha, "base_dtype": quantized.precision(model.params)}
    if config.target.checkpoint:  # what the model came from besides its folder
        about["checkpoint"] = beside(config.target.checkpoint, folder)
    if (folder / FINISHED).exists():
        logging.info("%s: already trained", name)
        return
    state = initial_state(model, training, seed, mesh, method.memory(method.read_settings(config), model, seed))
    frozen = model.params if training.lora.rank else None
    reference = model.params if frozen is None and method.needs_reference(method.read_settings(config)) else None
    settings, adam, key = (
        step_config(model, config, method),
        optimizer(training, method.updates(method.read_settings(config))),
        jax.device_put(jax.random.key(seed), sharding.replicated(mesh)),
    )
    step_fn = compiled_step(state, settings.parts)
    counts = (data.adversarial_rows, data.utility_rows)
    mine = tuple(sharding.local_rows(mesh, n) for n in counts)
    tokens = (2 * counts[0] + counts[1]) * (data.prompt_length + data.response_length)
    started = time.monotonic()

    with Checkpoints(folder / "checkpoints", training.save_every, training.keep) as checkpoints, signals.noted() as note:
        state = checkpoints.restore(state, about)
        first = int(state.step)
        if first:
            logging.info("%s: goes on after step %d", name, first)
        log = Metrics(folder, first, writes=jax.process_index() == 0)
        watcher = Watcher(name, folder, training, watch, log, checkpoints, about)
        shown = tuple(term.key for term in method.terms if term.said)
        ledger = Ledger(log, Progress(name, first, training.steps, tokens, shown), Faults(name, folder, config, seed), training)

        watcher.go_on(state, weights(frozen, state.trainable))
        for step in range(first + 1, training.steps + 1):
            if watcher.stopped:  # by the last measurement, of this call or of one before
                break
            if step == first + 1 or (refresh_every and (step - 1) % refresh_every == 0):
                try:
                    with note.at_once():  # a pool may take hours to draw, and is saved batch by batch
                        rows = adversarial((step - 1) // refresh_every if refresh_every else 0, *weights(frozen, state.trainable))
                except signals.Stopped:
                    if step > first + 1:
                        _save(checkpoints, ledger, state, about)
                    raise
                dataset = pipeline.batches(rows, utility, data, seed, mine)
            batch = placed(mesh, dataset[step - 1], counts)
            state, values = step_fn(state, frozen, batch, key, config=settings, optimizer=adam, reference=reference)
            ledger.note(step, values, Fed(batch, rows, utility))
            last = step == training.steps
            watching = watcher.due(step)
            if last or watching or step % training.save_every == 0:
                ledger.flush()
                if last or ledger.sound():
                    checkpoints.save(state, about, force=last or (watching and watcher.chooses))
            if watching:
                watcher.measure(step, state, weights(frozen, state.trainable))
            if stopped := told_to_stop(step, note):
                saved = _save(checkpoints, ledger, state, about)
                log.close()
                logging.warning("%s: %s; %s, exit status %d", name, stopped, saved, PREEMPTED)
                raise SystemExit(PREEMPTED)
        checkpoints.wait()
        log.close()
    seconds = time.monotonic() - started
    summary = about | {"seconds": round(seconds, 1), "resumed_at": first, "tokens_per_step": tokens} | watcher.summary()
    _finish(folder, summary | _operations(step_flops * summary["steps"], asking_flops) | {"skipped": log.count("skipped")})


def _operations(steps: float, asking: float) -> dict[str, float]:
    """What finished.json says of operations: those of the steps, and of asking the target where it was asked."""
    return {"flops": steps} | ({"asking_flops": asking} if asking else {})


def _save(checkpoints: Checkpoints, ledger: Ledger, state: TrainState, about: dict[str, Any]) -> str:
    """Saves before the training leaves, and says what; a state that skipped the last step is left to the checkpoint before it."""
    ledger.flush()
    if ledger.sound():
        checkpoints.save(state, about, force=True)
    checkpoints.wait()
    return f"saved step {int(state.step)}" if ledger.sound() else f"step {int(state.step)} was skipped and is not saved"


def _finish(folder: epath.Path, summary: dict[str, Any]) -> None:
    """Writes finished.json, by which a later call knows that nothing is left to do."""
    if jax.process_index() == 0:
        manifest.write(folder / FINISHED, summary)


def placed(mesh, batch: pipeline.Batch, counts: tuple[int, int]) -> pipeline.Batch:
    """Returns a step's rows as global arrays, from the rows that this process holds."""
    return pipeline.Batch(
        away=sharding.place_batch(mesh, batch.away, counts[0]),
        toward=sharding.place_batch(mesh, batch.toward, counts[0]),
        utility=sharding.place_batch(mesh, batch.utility, counts[1]),
        behavior_B=sharding.place_batch(mesh, batch.behavior_B, counts[0]),
    )


def used(folder) -> checkpoints_lib.Found:
    """Returns the checkpoint of a training folder that stands for the training: the best where finished.json says so, else the newest.

    Raises ValueError where there is none, the best one is damaged, or the training has ended at another step than the newest whole
    checkpoint's. Every process must call.
    """
    folder = epath.Path(folder)
    end = manifest.read(folder / FINISHED) if (folder / FINISHED).exists() else {}
    if end.get("used") == "best":
        return checkpoints_lib.kept(folder / APART, end["used_step"])
    found = checkpoints_lib.read(folder / "checkpoints")
    if end and (ended := end.get("steps", found.about["steps"])) != found.step:
        raise ValueError(
            f"{folder}: {FINISHED} says that the training ended after step {ended}, and the newest whole checkpoint is of step {found.step}"
            f"; put the checkpoint of step {ended} back as it was, or delete {FINISHED} to train on from step {found.step}"
        )
    if not end:
        logging.warning("%s: the training is not finished; the weights of step %d of %d are used", folder, found.step, found.about["steps"])
    return found


def restore(model: Model, folder, mesh) -> tuple[Any, lora_lib.Lora | None]:
    """Returns (params, lora) of the checkpoint of a training folder that is `used`, on any mesh, for evaluation and export.

    What was trained, factors or all weights, is read from the checkpoint. Raises ValueError as `used` does, and where it is another
    model's. Every process must call.
    """
    folder = epath.Path(folder)
    found = used(folder)
    about, here = found.about, origin(model)
    known = about.get("weights") and here.get("weights")  # a renamed folder is the same model
    trained = str(about["model"]).rstrip("/").split("/")[-1]
    if about["weights"] != here["weights"] if known else trained != here["model"]:
        raise ValueError(f"{folder} was trained from {trained!r}, and the target is {model.source!r}; set config.target.model to it")
    shapes = abstract_trainable(model.config, about["lora_rank"], about["lora_alpha"], mesh)
    trainable = checkpoints_lib.load_trainable(folder / "checkpoints", shapes, found)
    if about["lora_rank"]:
        warn_of_base(folder, about, quantized.precision(model.params))
    return weights(model.params if about["lora_rank"] else None, trainable)


def warn_of_base(folder: epath.Path, about: dict[str, Any], here: str) -> None:
    """Warns where factors lie on a base in other bits than they were trained on; checkpoints of earlier versions do not say on which."""
    learned = about.get("base_dtype", here)
    if learned != here and {learned, here} & set(quantized.KINDS):
        logging.warning(
            "%s: its factors were trained on a base in %s, and lie on one in %s here, which is another model; to evaluate or serve the one "
            "that was trained: config.target.dtype = %r", folder, learned, here, learned,
        )  # fmt: skip


def origin(model: Model) -> dict[str, Any]:
    """What a checkpoint says of the model it was trained from, wherever that lies: its name, and what its weights' files hold."""
    return {"model": str(model.source).rstrip("/").split("/")[-1], "weights": huggingface.weights_identity(model.source)}


def beside(checkpoint: str, folder: epath.Path) -> str:
    """Returns the training folder that a model came from, relative to a folder on the same disk: so both can move together."""
    if data_files.is_remote(checkpoint) or data_files.is_remote(folder):
        return checkpoint
    return os.path.relpath(os.path.abspath(checkpoint), os.path.abspath(folder))


def merged(model: Model, params, lora: lora_lib.Lora | None) -> Model:
    """Returns the model with trained weights in place: LoRA merged (see `lora.merge`), all in the dtype of the embedding."""
    plain = model.params["embedding"].dtype
    tuned = lora_lib.merge(params, lora) if lora else jax.tree.map(lambda weight: weight.astype(plain), params)
    return Model(params=tuned, config=model.config, tokenizer=model.tokenizer, source=model.source)
