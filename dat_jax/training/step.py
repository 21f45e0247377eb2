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


def optimizer(training) -> optax.GradientTransformation:
    """Returns AdamW or Muon with warm-up, cosine decay and clipping by global norm, from the config's `training` group.

    Equal settings give one object: it is a static argument of the compiled step, and methods of one run share that.
    """
    return _optimizer(
        training.optimizer,
        training.steps,
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
    trainable, frozen: Params | None, reference: Params | None, batch: Batch, found: Found | None, key: jax.Array, config: StepConfig
) -> tuple[jax.Array, Metrics]:
    """Returns the method's loss and its terms, with dropout on the adapters' inputs; differentiated with respect to `trainable`."""
    params, lora = weights(frozen, trainable)
    if lora is not None:
        lora = lora_lib.drop(key, lora, config.dropout)
    network = Network(params, lora, config.model, config.prompt_length, config.most_logits)
    original = None if reference is None else Network(reference, None, config.model, config.prompt_length, config.most_logits)
    return config.loss(network, original, batch, found, key, config.settings)


def train_step(
    state: TrainState, frozen: Params | None, batch: Batch, key: jax.Array, config: StepConfig, optimizer, reference: Params | None = None
) -> tuple[TrainState, Metrics]:
    """Returns the next state and the step's metrics (nats per token; shares; norms in units of the mean embedding norm).

    `frozen` holds the weights that LoRA leaves alone, or None where all weights are trained. `reference` holds the weights as they were
    before training, for methods that look at them. `key` is the run's; the step is folded in. Where loss or gradient is not finite, the
    step is counted and changes nothing else; the metric `skipped` is then 1.
    """
    key = jax.random.fold_in(key, state.step)
    with jax.named_scope("attack"):
        # Merged once: the scan then runs the plain model, without the adapters' extra products at each of its passes.
        merged = jax.lax.stop_gradient(lora_lib.merge(*weights(frozen, state.trainable)))

    def gradient(batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        found = None
        if config.inner is not None:
            with jax.named_scope("attack"):
                found = config.inner(
                    Network(merged, None, config.model, config.prompt_length, config.most_logits), batch, key, config.settings
                )
        with jax.named_scope("defence"):
            gradient, metrics = jax.grad(losses, has_aux=True)(state.trainable, frozen, reference, batch, found, key, config)
        return gradient, metrics | ({} if found is None else found.metrics)

    total, metrics = accumulated(gradient, batch, key, config.parts)
    with jax.named_scope("defence"):
        updates, moments = optimizer.update(total, state.optimizer, state.trainable)
        norm = optax.tree.norm(total)
        sound = jnp.isfinite(metrics["loss/total"] + norm)
        # A step that is not finite leaves weights and moments as they were: one bad batch must not end a run of days.
        stepped, before = (optax.apply_updates(state.trainable, updates), moments), (state.trainable, state.optimizer)
        trainable, moments = jax.tree.map(lambda new, old: jnp.where(sound, new, old), stepped, before)
    metrics |= {"gradient_norm": norm, "skipped": 1.0 - sound}
    return TrainState(step=state.step + 1, trainable=trainable, optimizer=moments), metrics


def accumulated(
    gradient: Callable[[Batch, jax.Array], tuple[Any, Metrics]], batch: Batch, key: jax.Array, parts: int
) -> tuple[Any, Metrics]:
    """Returns the mean gradient and metrics over `parts` parts of the batch, one after the other in the memory of one.

    Losses are means over rows and the parts are of one size, so the mean over parts is the whole batch's. Each part holds every parts-th
    row, so that the rows of one device stay there.
    """
    if parts == 1:
        return gradient(batch, key)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(lambda mean, one: mean + one / parts, total, gradient(*part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (split, keys))[0]
