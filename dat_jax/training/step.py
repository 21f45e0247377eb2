"""One training step: the method's inner maximisation against the current model, then one optimizer step on the method's loss."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dat_jax.checkpoints import TrainState
from dat_jax.data.pipeline import Batch
from dat_jax.models import lora as lora_lib
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import muon
from dat_jax.models.lora import Lora
from dat_jax.training.network import Found, Network

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


class Defence(Protocol):
    """What the loop needs of a method; methods.method.Method is one. Training knows no method by name, so it does not import them."""

    @property
    def name(self) -> str: ...
    @property
    def inner(self) -> Callable[..., Found] | None: ...
    @property
    def loss(self) -> Callable[..., Any] | None: ...
    @property
    def terms(self) -> Sequence[Any]: ...
    @property
    def needs_reference(self) -> Callable[[Any], bool]: ...
    @property
    def updates(self) -> Callable[[Any], int]: ...
    @property
    def memory(self) -> Callable[[Any, Any, int], Any]: ...
    def read_settings(self, config: Any) -> Hashable: ...


@flax.struct.dataclass
class StepConfig:
    """The static part of a step: everything that shapes the compiled program. `inner` and `loss` are a method's, see methods/method.py."""

    model: ModelConfig = flax.struct.field(pytree_node=False)
    inner: Callable[..., Found] | None = flax.struct.field(pytree_node=False)
    loss: Callable[..., Any] = flax.struct.field(pytree_node=False)
    settings: Hashable = flax.struct.field(pytree_node=False)  # the method's
    prompt_length: int = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    most_logits: int = flax.struct.field(pytree_node=False, default=0)  # numbers the head may give at a time; 0: any
    parts: int = flax.struct.field(pytree_node=False, default=1)  # the batch is worked through in so many parts of equal size
    updates: int = flax.struct.field(pytree_node=False, default=1)  # of the weights per inner maximisation
    steps: int = flax.struct.field(pytree_node=False, default=1)  # of the whole training
    compares: bool = flax.struct.field(pytree_node=False, default=False)  # the method looks at the weights as they were before training


def optimizer(training, updates: int = 1) -> optax.GradientTransformation:
    """Returns AdamW or Muon with warm-up, cosine decay and clipping by global norm, from the config's `training` group.

    updates: of the weights in each step; the schedule counts them. Equal settings give one object: it is a static argument of the compiled
    step, and methods of one run share that.
    """
    return _optimizer(
        training.optimizer,
        training.steps * updates,
        training.learning_rate,
        training.final_learning_rate,
        training.warmup,
        training.clip,
        training.weight_decay,
    )


@functools.cache
def _optimizer(
    name: str, steps: int, peak: float, final: float, warm: float, clip: float, weight_decay: float
) -> optax.GradientTransformation:
    warmup = round(warm * steps)
    schedule = optax.warmup_cosine_decay_schedule(peak / max(warmup, 1), peak, warmup, max(steps, warmup + 1), final * peak)
    rule = muon(schedule, weight_decay, 0.999) if name == "muon" else optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), rule)


def weights(frozen: Params | None, trainable: Any) -> tuple[Params, Lora | None]:
    """Returns (params, lora): the frozen weights with factors beside them, or the trainable weights alone."""
    if frozen is None:
        return trainable, None
    return frozen, trainable


def losses(
    trainable,
    frozen: Params | None,
    reference: Params | None,
    batch: Batch,
    found: Found | None,
    key: jax.Array,
    progress: jax.Array,
    config: StepConfig,
) -> tuple[jax.Array, Metrics]:
    """Returns the method's loss and its terms, with dropout on the adapters' inputs; differentiated with respect to `trainable`."""
    params, lora = weights(frozen, trainable)
    if lora is not None:
        lora = lora_lib.drop(key, lora, config.dropout)
    network = Network(params, lora, config.model, config.prompt_length, config.most_logits, progress)
    original = None if reference is None else Network(reference, None, config.model, config.prompt_length, config.most_logits)
    return config.loss(network, original, batch, found, key, config.settings)


def train_step(
    state: TrainState, frozen: Params | None, batch: Batch, key: jax.Array, config: StepConfig, optimizer, reference: Params | None = None
) -> tuple[TrainState, Metrics]:
    """Returns the next state and the step's metrics (nats per token; shares; norms in units of the mean embedding norm).

    `frozen` holds the weights that LoRA leaves alone, or None where all weights are trained. `reference` holds the weights as they were
    before training, for methods that look at them; None: as `frozen`, so that they are no second argument. `key` is the run's; the step is
    folded in. A method may update the weights several times on one perturbation; the metrics are the last update's. What it keeps from step
    to step is `state.memory`, which its inner maximisation reads and replaces. Where loss or gradient is not finite, an update is counted
    and changes nothing else; the metric `skipped` is then 1.
    """
    progress, reference = state.step / config.steps, frozen if config.compares and reference is None else reference
    key = jax.random.fold_in(key, state.step)
    with jax.named_scope("attack"):
        # Merged once: the scan then runs the plain model, without the adapters' extra products at each of its passes (unless quantized).
        merged = jax.lax.stop_gradient(lora_lib.merge(*weights(frozen, state.trainable)))
    attacked = Network(merged, None, config.model, config.prompt_length, config.most_logits, progress)

    def find(memory: Any, rows: tuple[Batch, jax.Array]) -> tuple[Any, Found | None]:
        with jax.named_scope("attack"):
            if config.inner is None:
                return memory, None
            found = config.inner(attacked.replace(memory=memory), *rows, config.settings)  # type: ignore[attr-defined]
        return found.memory, found.replace(memory=())  # type: ignore[attr-defined]

    def gradient(trainable: Any, number: jax.Array, batch: Batch, key: jax.Array, found: Found | None) -> tuple[Any, Metrics]:
        key = jnp.where(number > 0, jax.random.fold_in(key, number), key)
        with jax.named_scope("defence"):
            gradient, metrics = jax.grad(losses, has_aux=True)(trainable, frozen, reference, batch, found, key, progress, config)
        return gradient, metrics | ({} if found is None else found.metrics)

    rows = in_parts(batch, key, config.parts)
    memory, found = find(state.memory, rows) if config.parts == 1 else jax.lax.scan(find, state.memory, rows)

    def update(weights_and_moments: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
        total, metrics = accumulated(functools.partial(gradient, weights_and_moments[0], number), (*rows, found), config.parts)
        norm = optax.tree.norm(total)
        sound = jnp.isfinite(metrics["loss/total"] + norm)
        with jax.named_scope("defence"):
            after = updated(optimizer, total, *weights_and_moments, sound)
        return after, metrics | {"gradient_norm": norm, "skipped": 1.0 - sound}

    # A loop, and not as many copies of the update in the program: LAT's four would take four times as long to compile.
    before, numbers = (state.trainable, state.optimizer), jnp.arange(config.updates)
    (trainable, moments), metrics = jax.lax.scan(update, before, numbers, unroll=config.updates == 1)
    skipped = jnp.max(metrics["skipped"])
    after = TrainState(state.step + 1, trainable, moments, chosen(skipped == 0, memory, state.memory))
    return after, jax.tree.map(lambda values: values[-1], metrics) | {"skipped": skipped}


def updated(optimizer, gradient: Any, trainable: Any, moments: Any, sound: jax.Array) -> tuple[Any, Any]:
    """Returns weights and moments after an update, or as they were where it is not sound: one bad batch must not end a run of days."""
    updates, after = optimizer.update(gradient, moments, trainable)
    stepped = (optax.apply_updates(trainable, updates), after)
    return chosen(sound, stepped, (trainable, moments))


def chosen(first: jax.Array, one: Any, other: Any) -> Any:
    """Returns the one tree where `first` says so, and the other elsewhere."""
    return jax.tree.map(lambda this, that: jnp.where(first, this, that), one, other)


def in_parts(batch: Batch, key: jax.Array, parts: int) -> tuple[Batch, jax.Array]:
    """Returns batch and key, or with several parts both with an axis of parts in front.

    Each part holds every parts-th row, so that the rows of one device stay there.
    """
    if parts == 1:
        return batch, key
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch), jax.random.split(key, parts)


def accumulated(gradient: Callable[..., tuple[Any, Metrics]], arguments: tuple[Any, ...], parts: int) -> tuple[Any, Metrics]:
    """Returns the mean gradient and metrics over the parts that `arguments` are in, one after the other in the memory of one.

    Losses are means over rows and the parts are of one size, so the mean over parts is the whole batch's.
    """
    if parts == 1:
        return gradient(*arguments)

    def add(total: Any, part: tuple[Any, ...]) -> tuple[Any, None]:
        return jax.tree.map(lambda mean, one: mean + one / parts, total, gradient(*part)), None

    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], arguments))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, arguments)[0]
