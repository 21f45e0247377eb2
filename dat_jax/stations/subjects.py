"""The models that are attacked and compared: the target as it came, what a run trained, and others side by side."""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dat_jax import world
from dat_jax.data import files, manifest
from dat_jax.data.answers import checksum, compared, short_name
from dat_jax.diffusion import denoiser
from dat_jax.methods import METHODS
from dat_jax.models import huggingface, quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.stations.inputs import Inputs, check_fit, load_model, needs_sampler
from dat_jax.training import loop


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model under evaluation. `load` gives it with LoRA merged, from the target where it is trained from that."""

    name: str  # a column of the report and a folder of answers
    source: str  # for readers: the folder, hub id or checkpoint
    load: Callable[[Callable[[], Model]], Model]  # (loads the target, once) -> the model
    check: Callable[[], None] = lambda: None  # raises ValueError where `load` is known to fail, before it is called

    @property
    def identity(self) -> str:
        """What the model is, told from its files without loading it and whatever folder they lie in; see `identity`."""
        return identity(self.source)


def subjects(inputs: Inputs, mesh) -> list[Subject]:
    """Returns the models of a run in the order of the report: config.training.methods, or the target itself; then evaluation.compare.

    Raises ValueError for two of one name.
    """
    config = inputs.config
    found = [_of_method(inputs, name, mesh) for name in config.training.methods]
    if not found:
        origin = config.target.checkpoint or config.target.model
        found = [Subject(short_name(origin), origin, lambda target: target())]
    found += [_compared(entry, config, mesh) for entry in config.evaluation.compare]
    names = [subject.name for subject in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"two models are called {repeated[0]!r}; allowed: different names, NAME=FOLDER in config.evaluation.compare gives one its own"
        )
    return found


def _of_method(inputs: Inputs, name: str, mesh) -> Subject:
    folder = inputs.folder / name
    if not METHODS[name].trains:
        return Subject(name, inputs.config.target.model, lambda target: target())

    def check() -> None:
        if not is_checkpoint(str(folder)):
            raise ValueError(f"{folder}: no checkpoint of {name}; run --mode=train first")

    return Subject(name, str(folder), lambda target: loop.merged(target(), *loop.restore(target(), folder, mesh)), check)


def _compared(entry: str, config: ConfigDict, mesh) -> Subject:
    """The model of an entry of config.evaluation.compare: [NAME=]FOLDER, hub id or RUN/seed_0/METHOD."""
    name, source = compared(entry)
    if is_checkpoint(source):
        # On the model as it came: what config.target.checkpoint put on top of it is not what this run was trained from.
        base = (lambda target: load_model(config.target, mesh)) if config.target.checkpoint else (lambda target: target())
        return Subject(name, source, lambda target: on_top(base(target), source, mesh))

    def load(target: Callable[[], Model]) -> Model:
        del target
        return load_model(config.target, mesh, source)

    return Subject(name, source, load)


def identity(source: str) -> str:
    """The last part of a model's name and a checksum of what its folder holds: of a training's end, or of samples of the weights' files.

    A hub id is its own identity. Retraining a method, or another model under the same name, gives another one; moving it does not. The name
    is for readers: `content` is what is compared.
    """
    folder = epath.Path(source)
    if source and is_checkpoint(source):
        end = folder / loop.FINISHED
        if end.exists():
            manifest.read(end)  # damage there is to be named as that
        return f"{short_name(source)} {checksum(end.read_text() if end.exists() else 'unfinished')}"
    return huggingface.identity(source)


def content(identity: str) -> str:
    """What of an identity says which model it is: the checksum without the name, which changes when a folder is renamed; or a hub id."""
    return identity.rpartition(" ")[2]


def check_sources(config: ConfigDict) -> None:
    """Raises ValueError naming the key of a model that is not there or is of the wrong kind: to be known now, not after hours."""
    if config.world.enabled:
        check_dtype("target", world.target_config(config.world), config.target.dtype, "the world's target")
        return
    named = [("target.model", config.target.model)]
    named += [("evaluation.compare", source) for _, source in map(compared, config.evaluation.compare) if not is_checkpoint(source)]
    named += [("rewriter.model", config.rewriter.model)] if config.rewriter.model else []
    named += [("sampler.model", config.sampler.model)] if needs_sampler(config) else []
    for key, source in named:
        try:
            architecture = huggingface.read_config(huggingface.locate(source))
            if key == "sampler.model":
                denoiser.mask_id(architecture)
            elif not architecture.causal:
                raise ValueError(f"{source!r} is a masked-diffusion LM ({architecture.model_type}); allowed: a causal LM, which can answer")
        except ValueError as error:
            more = "; allowed: a Hugging Face folder, a hub id or RUN/seed_0/METHOD" if key == "evaluation.compare" else ""
            raise ValueError(f"config.{key}: {str(error).removeprefix(f'config.{key}: ')}{more}") from error
        if key in ("target.model", "sampler.model", "evaluation.compare"):
            group = "sampler" if key == "sampler.model" else "target"
            check_dtype(group, architecture, config[group].dtype, repr(source))
        if key == "evaluation.compare":  # the target, which may be trained too, is asked where its files are read
            check_fit(config, source, {"attacks": config.evaluation.attacks})
    if config.target.checkpoint:
        require_checkpoint(config.target.checkpoint)


def check_dtype(group: str, architecture: ModelConfig, dtype: str, name: str) -> None:
    """Raises ValueError naming config.<group>.dtype where a model's sizes do not allow the precision."""
    try:
        weights.abstract(architecture, dtype)
    except ValueError as error:
        raise ValueError(f"config.{group}.dtype is {dtype!r}, and {name} has no room for it: {error}") from error


def check_devices(config: ConfigDict, platform: str, sampler: bool | None = None) -> None:
    """Raises ValueError for a kernel that the devices do not have; sampler: whether one runs, by default whether the run draws prompts.

    A precision that they do not have is none: XLA computes it in a wider one.
    """
    for key in ("target", "sampler") if (needs_sampler(config) if sampler is None else sampler) else ("target",):
        if config[key].attention == "splash" and platform != "tpu":
            raise ValueError(
                f"config.{key}.attention is 'splash', a kernel for TPUs, and the devices are of kind {platform!r}; allowed: xla"
            )


def is_checkpoint(source: str) -> bool:
    """Whether a path is a training folder RUN/seed_0/METHOD, with Orbax checkpoints in it."""
    return (epath.Path(source) / "checkpoints").is_dir()


def require_checkpoint(source: str) -> None:
    """Raises ValueError where a path is no training folder."""
    if not is_checkpoint(source):
        raise ValueError(f"{source} is no training folder: it has no checkpoints/; allowed: RUN/seed_0/METHOD")


def on_top(target: Model, source: str, mesh) -> Model:
    """Returns the target as it came with the weights that a run trained, on top of those that the run began from; on any mesh.

    Raises ValueError where the folder has no checkpoint, or one that was trained from another model.
    """
    require_checkpoint(source)
    if below := loop.used(source).about.get("checkpoint"):
        near = os.path.normpath(os.path.join(source, below))  # relative to the folder, as trainings write it; before, as it was given
        target = on_top(target, near if not files.is_remote(below) and is_checkpoint(near) else below, mesh)
    params, lora = loop.restore(target, epath.Path(source), mesh)
    return loop.merged(target, params, lora)


def load_target(config: ConfigDict, mesh) -> Model:
    """Loads config.target: the model, and on top of it what config.target.checkpoint was trained to."""
    target: Any = load_model(config.target, mesh)
    if config.target.checkpoint:
        logging.info("target: weights of %s", config.target.checkpoint)
        target = on_top(target, config.target.checkpoint, mesh)
        if config.target.dtype in quantized.KINDS and quantized.precision(target.params) != config.target.dtype:
            raise ValueError(
                f"config.target.dtype is {config.target.dtype!r}, and all weights of {config.target.checkpoint} were trained "
                "(training.lora.rank = 0); allowed: float32 | bfloat16, or export it and name that folder as config.target.model"
            )
    return target
