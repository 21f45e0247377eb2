"""The plain training loop for small models: one jitted AdamW step over a stream of equal batches."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dat_jax.checkpoints import Checkpoints, TrainState

Params = dict[str, Any]
Loss = Callable[..., jax.Array]  # (params, batch, key, *constants)
Watch = Callable[[int, Params, jax.Array], None]
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where a training keeps its newest state, so that after a kill the same call goes on there and ends bit for bit the same."""

    folder: str | os.PathLike[str]  # an absolute path
    every: int  # steps
    about: dict[str, Any]  # what the training is: a state of another one is refused


def fit(
    loss: Loss,
    params: Params,
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    key: jax.Array,
    report: Report,
    label: str = "fit",
    optimizer: str = "adamw",
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    saving: Saving | None = None,
    constants: tuple[Any, ...] = (),
    watch: Watch | None = None,
) -> Params:
    """Train `params` for `steps` batches and return them; the given ones stay usable.

    loss(params, batch, key) is a scalar; every batch has the same structure and shapes, so there is one compilation. The optimizer is
    "adamw" (betas 0.9, 0.98), or "muon": Muon for the stacked matrices, scaled to the size of AdamW's updates (arXiv 2502.16982), with
    which a fresh small model learns the same in a third of the steps. Gradients are clipped to global norm `clip`; the learning rate rises
    for the fraction `warmup` of the steps and then falls to zero on a cosine. About ten lines of progress go to `report`, each with the
    mean loss since the last, tokens/s (positions of the largest array in the batch, padding included), steps/s and the time left.
    `saving` makes it resumable; `batches` starts with the first step's in every call. constants: trees of arrays that are not trained and
    follow as the loss's last arguments; a closure would write them into the program. watch(number, params, value) is called after every
    step, before its state is saved; it must not keep the params.

    Raises ValueError if the optimizer is unknown, the batches end early, the loss is not finite or the saved state is another training's.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, round(warmup * steps)), steps)
    update = optax.chain(optax.clip_by_global_norm(clip), _optimizer(optimizer, schedule, weight_decay))

    def step(
        params: Params, state: optax.OptState, batch: Any, key: jax.Array, constants: tuple[Any, ...]
    ) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch, key, *constants)
        updates, state = update.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(lambda x: x.copy(), params)
    state = TrainState(step=jnp.zeros((), jnp.int32), trainable=params, optimizer=jax.jit(update.init)(params))
    values: list[jax.Array] = []
    every = max(1, steps // 10)
    with contextlib.ExitStack() as stack:
        checkpoints = saving and stack.enter_context(Checkpoints(saving.folder, saving.every, keep=1))
        if saving and checkpoints:
            state = checkpoints.restore(state, saving.about)
        first, params, optimizer_state = int(state.step), state.trainable, state.optimizer
        if first:
            report(f"{label}: goes on after step {first}")
        batches = itertools.islice(batches, first, None)
        started = time.monotonic()
        for number in range(first + 1, steps + 1):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"{label}: the batches ended after {number - 1} of {steps} steps")
            params, optimizer_state, value = compiled(params, optimizer_state, batch, jax.random.fold_in(key, number), constants)
            values.append(value)
            if number == first + 1:
                value.block_until_ready()
                report(f"{label}: compiled in {time.monotonic() - started:.0f} s")
                started = time.monotonic()
            told = number % every == 0 or number == steps
            due = saving is not None and (number % saving.every == 0 or number == steps)
            # Before a state is saved: no call can go on from one whose loss is not finite.
            if (told or due) and not np.isfinite(float(value)):
                raise ValueError(f"{label}: the loss is {float(value)} at step {number} of {steps}; a smaller learning rate may help")
            if told and number > first + 1:
                pace = (time.monotonic() - started) / (number - first - 1)
                report(f"{label}: {_progress(number, steps, values, batch, pace)}")
                values.clear()
            if watch:
                watch(number, params, value)
            if due and checkpoints and saving:
                reached = TrainState(step=jnp.asarray(number, jnp.int32), trainable=params, optimizer=optimizer_state)
                checkpoints.save(reached, saving.about, force=number == steps)
    return params


def _progress(number: int, steps: int, values: list[jax.Array], batch: Any, pace: float) -> str:
    """A line on the steps so far; values: the losses since the last line, pace: seconds per step."""
    tokens = max(int(np.size(leaf)) for leaf in jax.tree.leaves(batch))
    mean, speed = float(np.mean([float(value) for value in values])), f"{tokens / pace:,.0f} tokens/s  {1 / pace:.3g} steps/s"
    return f"step {number}/{steps}  loss {mean:.4f}  {speed}  {pace * (steps - number):.0f} s left"


def _optimizer(name: str, schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    if name == "adamw":
        return optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=weight_decay)
    if name == "muon":
        return muon(schedule, weight_decay, 0.98)
    raise ValueError(f"optimizer={name!r}; allowed: 'adamw', 'muon'")


def muon(schedule: optax.Schedule, weight_decay: float, b2: float) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW (betas 0.9, b2) for the rest; updates of the size of AdamW's (arXiv 2502.16982).

    Only the layers' matrices are stacked to three dimensions, by which they are known.
    """
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return optax.contrib.muon(
        schedule, weight_decay=weight_decay, adam_b1=0.9, adam_b2=b2, adam_weight_decay=weight_decay, consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda x: matrix if x.ndim == 3 else None, params),
    )  # fmt: skip
