"""One training step: attack the current model, then take one optimizer step away from, toward and for utility."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dat_jax.checkpoints import TrainState
from dat_jax.data.pipeline import Batch
from dat_jax.models import lora as lora_lib
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.lora import Lora
from dat_jax.training.objectives import Objective, away_loss, cross_entropy, toward_loss
from dat_jax.training.perturbation import Attack, add, perturb, response_nll

Params = dict[str, Any]


@flax.struct.dataclass
class StepConfig:
    """The static part of a step: everything that shapes the compiled program."""

    model: ModelConfig = flax.struct.field(pytree_node=False)
    attack: Attack = flax.struct.field(pytree_node=False)
    objective: Objective = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    chunk: int = flax.struct.field(pytree_node=False, default=0)  # response positions the head sees at a time; 0: all


def optimizer(training) -> optax.GradientTransformation:
    """Returns AdamW with warm-up, cosine decay and clipping by global norm, from the config's `training` group.

    Equal settings give one object: it is a static argument of the compiled step, and methods of one run share that.
    """
    return _optimizer(
        training.steps, training.learning_rate, training.final_learning_rate, training.warmup, training.clip, training.weight_decay
    )


@functools.cache
def _optimizer(steps: int, peak: float, final: float, warm: float, clip: float, weight_decay: float) -> optax.GradientTransformation:
    warmup = round(warm * steps)
    schedule = optax.warmup_cosine_decay_schedule(peak / max(warmup, 1), peak, warmup, max(steps, warmup + 1), final * peak)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay))


def weights(frozen: Params | None, trainable: Any) -> tuple[Params, Lora | None]:
    """Returns (params, lora): the frozen weights with factors beside them, or the trainable weights alone."""
    if frozen is None:
        return trainable, None
    return frozen, trainable


def losses(trainable, frozen: Params | None, batch: Batch, delta_BxPxD: jax.Array, key: jax.Array, config: StepConfig):
    """Returns the objective and its terms; away, toward and utility rows go through one forward pass.

    CAT, arXiv 2405.15589, eq. 5, with the cutoffs of the reference (see objectives.py).
    """
    params, lora = weights(frozen, trainable)
    if lora is not None:
        lora = lora_lib.drop(key, lora, config.dropout)
    rows = jax.tree.map(lambda *blocks: jnp.concatenate(blocks), batch.away, batch.toward, batch.utility)
    e_BxTxD = transformer.embed(params, config.model, rows.tokens_BxT)
    adversarial = batch.away.tokens_BxT.shape[0]
    rest_BxPxD = jnp.zeros((rows.tokens_BxT.shape[0] - 2 * adversarial, *delta_BxPxD.shape[1:]), jnp.float32)
    e_BxTxD = add(e_BxTxD, jnp.concatenate([delta_BxPxD, delta_BxPxD, rest_BxPxD]))
    nll_BxR = response_nll(params, config.model, e_BxTxD, rows, config.prompt_length, lora, config.chunk)
    mask_BxR = rows.response_mask_BxT[:, config.prompt_length :]
    harmful, refusal, benign = (slice(0, adversarial), slice(adversarial, 2 * adversarial), slice(2 * adversarial, None))
    away = away_loss(nll_BxR[harmful], mask_BxR[harmful], config.objective)
    toward = toward_loss(nll_BxR[refusal], mask_BxR[refusal], config.objective)
    nll_B = cross_entropy(nll_BxR, mask_BxR)
    utility = jnp.mean(cross_entropy(nll_BxR[benign], mask_BxR[benign], pooled=config.objective.cutoff_over == "batch"))
    weight = config.objective
    total = weight.away_weight * away + weight.toward_weight * toward + weight.utility_weight * utility
    metrics = {"loss/total": total, "loss/away": away, "loss/toward": toward, "loss/utility": utility}
    metrics |= {"nll/harmful": jnp.mean(nll_B[harmful]), "nll/refusal": jnp.mean(nll_B[refusal])}
    return total, metrics


def train_step(state: TrainState, frozen: Params | None, batch: Batch, key: jax.Array, config: StepConfig, optimizer):
    """Returns the next state and the step's metrics (nats per token; shares; norms in units of the mean embedding norm).

    `frozen` holds the weights that LoRA leaves alone, or None where all weights are trained. `key` is the run's; the step is folded in.
    """
    with jax.named_scope("attack"):
        # Merged once: the scan then runs the plain model, without the adapters' extra products at each of its passes.
        merged = lora_lib.merge(*weights(frozen, state.trainable))
        merged = jax.lax.stop_gradient(merged)
        delta_BxPxD, info = perturb(merged, config.model, batch.away, config.attack, config.prompt_length, chunk=config.chunk)
    with jax.named_scope("defence"):
        key = jax.random.fold_in(key, state.step)
        gradient, metrics = jax.grad(losses, has_aux=True)(state.trainable, frozen, batch, delta_BxPxD, key, config)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
    metrics |= {
        "attack/gain": jnp.mean(info["nll_before_B"]) - metrics["nll/harmful"],  # nats per token by which log p(y) was raised
        "attack/norm": info["norm"],
        "attack/at_radius": info["at_radius"],
        "gradient_norm": optax.tree.norm(gradient),
    }
    return TrainState(step=state.step + 1, trainable=trainable, optimizer=optimizer_state), metrics
