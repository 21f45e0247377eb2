"""The programs of a run as they will be compiled on a slice: real shapes and shardings, no weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dat_jax import sharding
from dat_jax.attacks import embedding, victim
from dat_jax.compilation.published import architecture
from dat_jax.data.conversations import Conversations
from dat_jax.data.pipeline import Batch
from dat_jax.diffusion.passes import padded_block
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.sampler import infill
from dat_jax.methods import METHODS
from dat_jax.methods.method import Method
from dat_jax.models import flops, quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.models.lora import LINEAR
from dat_jax.settings import read
from dat_jax.training import loop
from dat_jax.training.perturbation import operations

TEMPLATE_TOKENS = 8  # of a sampler's row: begin of text and separator


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that can be lowered, with the FLOPs it needs by formula (by scope, over all devices) and what one run of it does."""

    name: str
    about: str
    flops: dict[str, float]
    lower: Callable[[], jax.stages.Lowered]
    beside: float = 0.0  # bytes per device of weights that are in memory meanwhile and that the program does not read


def of_run(config: ConfigDict, mesh: Mesh) -> Iterator[Program]:
    """The train step, the evaluation's decoder and embedding attack, and the sampler where one is configured.

    Raises ValueError for rows or lengths that do not fit the mesh.
    """
    target = architecture(config.target)
    methods = [METHODS[name] for name in config.training.methods if METHODS[name].trains]
    alike: dict[Any, list[Method]] = {}
    for method in methods:  # CAT and DAT are one program
        alike.setdefault((method.inner, method.loss, method.key), []).append(method)
    for same in alike.values():
        yield train_step(config, target, mesh, same[0], " and ".join(method.title for method in same))
    if config.sampler.model:
        yield sampler(config, architecture(config.sampler), mesh)
    yield decoder(config, target, mesh)
    yield embedding_attack(config, target, mesh)


def savings(config: ConfigDict) -> dict[str, dict[str, float]]:
    """By how many bytes the arguments of each program shrink in fewer bits than the run's, over one copy of the weights, by precision.

    {} where all weights are trained. A precision that a model's sizes do not allow is left out.
    """

    def size(model: ModelConfig, dtype: str) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights.abstract(model, dtype)))

    groups = [("target", ("train_step", "decoder", "embedding_attack"))] + ([("sampler", ("sampler",))] if config.sampler.model else [])
    found: dict[str, dict[str, float]] = {}
    for dtype in quantized.KINDS if config.training.lora.rank else ():
        try:
            saved = {name: size(model, config[key].dtype) - size(model, dtype) for key, names in groups
                     for model in [architecture(config[key])] for name in names}  # fmt: skip
        except ValueError:
            continue
        if max(saved.values()) > 0:
            found[dtype] = {name: max(0.0, bytes_) for name, bytes_ in saved.items()}
    return found


def train_step(config: ConfigDict, model: ModelConfig, mesh: Mesh, method: Method, titles: str = "") -> Program:
    """`training.step.train_step` of a method as the loop calls it; titles: of all methods whose program it is, "" for this one alone."""
    data, training = config.data, config.training
    prompt, response, rows = data.prompt_length, data.response_length, data.adversarial_rows
    own = method.read_settings(config)
    memory = jax.eval_shape(lambda: method.memory(own, Model({}, model, None), 0))  # its arrays would lie on devices that are not there
    state = loop.abstract_state(model, training, mesh, memory)
    frozen = weights.abstract(model, config.target.dtype, mesh) if training.lora.rank else None
    batch = Batch(
        away=_conversations(mesh, rows, prompt + response),
        toward=_conversations(mesh, rows, prompt + response),
        utility=_conversations(mesh, data.utility_rows, prompt + response),
        behavior_B=_seeds(mesh, rows),
    )
    settings = loop.step_config(Model({}, model, None), config, method)

    def lower() -> jax.stages.Lowered:
        step = loop.compiled_step(state, settings.parts)
        looks_back = frozen is None and method.needs_reference(own)
        original = weights.abstract(model, config.target.dtype, mesh) if looks_back else None
        rule = loop.optimizer(training, method.updates(own))
        return step.lower(state, frozen, batch, _key(mesh), config=settings, optimizer=rule, reference=original)

    about = f"{titles or method.title}, {rows} adversarial + {data.utility_rows} utility rows of {prompt} + {response}"
    about += f", {method.about(own)}" if method.about(own) else ""
    about += f", {training.micro_batch} rows at a time" if training.micro_batch else ""
    return Program("train_step", about, method.step_flops(model, config), lower)


def sampler(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Program:
    """`diffusion.sampler.infill` on one batch of the pool, prompts of the greatest length."""
    pool = read(Pool, config.sampler)
    span = pool.prompt_tokens[1]
    length = padded_block(pool, span + TEMPLATE_TOKENS, model) + pool.response_tokens
    settings = pool.settings(())
    tokens, mask = (_rows(mesh, pool.batch_size, length, dtype) for dtype in (jnp.int32, jnp.bool_))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), pool.batch_size))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding.batch_sharding(mesh, keys.shape))

    def lower() -> jax.stages.Lowered:
        return infill.lower(weights.abstract(model, config.sampler.dtype, mesh), model, tokens, mask, mask, keys, settings, span)

    head = -(-span // settings.steps) if settings.remasking == "random" else span
    branches = 2 if settings.cfg_scale else 1
    shape = Pass(branches * pool.batch_size, length, head)
    about = f"{pool.batch_size} rows of {length}, {settings.steps} denoising steps, {span} prompt tokens"
    return Program("sampler", about, {"sampler": flops.infill(model, settings.steps, shape)}, lower, beside_the_sampler(config, mesh))


def trained_weights(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The weights of a trained target as they are evaluated: merged, or for quantized ones with the factors beside the codes."""
    params, rank = weights.abstract(model, config.target.dtype, mesh), config.training.lora.rank
    if config.target.dtype not in quantized.KINDS or not rank:
        return params
    factors = loop.abstract_trainable(model, rank, config.training.lora.alpha, mesh).factors
    layers = {name: params["layers"][name].updated(factor["a"], factor["b"]) for name, factor in factors.items()}
    return {**params, "layers": {**params["layers"], **layers}}


def bytes_per_device(tree: Any) -> float:
    """The bytes of a tree of abstract arrays on each device."""
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def beside_a_trained_model(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> float:
    """What of the target is not a trained model's, too: the matrices that factors were merged into, or all where all are trained.

    An evaluation keeps the target until the last model has answered. Codes of quantized matrices are shared.
    """
    if not any(METHODS[name].trains for name in config.training.methods) or config.target.dtype in quantized.KINDS:
        return 0.0
    dtype = config.target.dtype
    return bytes_per_device(_matrices(model, dtype, mesh) if config.training.lora.rank else weights.abstract(model, dtype, mesh))


def beside_the_sampler(config: ConfigDict, mesh: Mesh) -> float:
    """The target and the model trained from it, where prompts are drawn for the latter: anew in its training, or in `infilling_adapted`.

    The training's state is there too, and in the attack the layers' matrices of the sampler as it was before its factors were merged.
    """
    again = config.sampler.refresh_every and any(METHODS[name].prompts == "sampled" for name in config.training.methods)
    adapts = "infilling_adapted" in config.evaluation.attacks
    if not again and not adapts:
        return 0.0
    target = architecture(config.target)
    models = bytes_per_device(trained_weights(config, target, mesh)) + beside_a_trained_model(config, target, mesh)
    state = bytes_per_device(loop.abstract_state(target, config.training, mesh)) if again else 0.0
    copied = adapts and config.sampler.dtype not in quantized.KINDS
    before = bytes_per_device(_matrices(architecture(config.sampler), config.sampler.dtype, mesh)) if copied else 0.0
    return models + max(state, before)


def _matrices(model: ModelConfig, dtype: str, mesh: Mesh) -> list[Any]:
    """The layers' matrices that factors are merged into."""
    layers = weights.abstract(model, dtype, mesh)["layers"]
    return [layers[name] for name in LINEAR]


def decoder(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Program:
    """`attacks.victim.generate`: decoding of one batch of attempts by a trained model."""
    data, evaluation = config.data, config.evaluation
    rows, new = evaluation.batch_size, evaluation.max_new_tokens
    batch, seeds = _conversations(mesh, rows, data.prompt_length + data.response_length), _seeds(mesh, rows)

    def lower() -> jax.stages.Lowered:
        return victim.generate.lower(
            trained_weights(config, model, mesh), model, batch, seeds, None, max_new_tokens=new, stop_tokens=(2,),
            temperature=evaluation.temperature, prompt_length=data.prompt_length,
        )  # fmt: skip

    needed = {"decode": flops.generate(model, rows, data.prompt_length, new)}
    about = f"{rows} rows, prompts of {data.prompt_length}, {new} new tokens"
    return Program("decoder", about, needed, lower, beside_a_trained_model(config, model, mesh))


def embedding_attack(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Program:
    """`attacks.victim.perturbation`: the embedding attack's search on one batch of attempts, before they are answered."""
    data, rows, how = config.data, config.evaluation.batch_size, embedding.ATTACK.read_settings(config).perturbation
    length = data.prompt_length + data.response_length
    batch, seeds = _conversations(mesh, rows, length), _seeds(mesh, rows)

    def lower() -> jax.stages.Lowered:
        params = trained_weights(config, model, mesh)
        return victim.perturbation.lower(params, model, batch, how, data.prompt_length, seeds, 0, how.radius, how.step_size)

    needed = {"attack": operations(model, how, Pass(rows, length, data.response_length))}
    about = f"{rows} rows, prompts of {data.prompt_length}, {how.steps} attack steps"
    return Program("embedding_attack", about, needed, lower, beside_a_trained_model(config, model, mesh))


def _conversations(mesh: Mesh, rows: int, length: int) -> Conversations:
    mask = _rows(mesh, rows, length, jnp.bool_)
    return Conversations(_rows(mesh, rows, length, jnp.int32), mask, mask, mask)  # type: ignore[arg-type]


def _seeds(mesh: Mesh, rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding.batch_sharding(mesh, (rows,)))


def _rows(mesh: Mesh, rows: int, length: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding.batch_sharding(mesh, (rows, length)))


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
