"""Floating-point operations that the method needs, by formula: matrix products, nothing recomputed, full squares of attention scores."""

from __future__ import annotations

import dataclasses

from dat_jax.models import lora as lora_lib
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Pass:
    """A forward pass over rows of `length` positions, the head at `head_positions` of each."""

    rows: int
    length: int
    head_positions: int


def linear(config: ModelConfig, shape: Pass) -> float:
    """All linear layers, once."""
    table = weights.table(config)["layers"]
    elements = sum(table[name].shape[1] * table[name].shape[2] for name in lora_lib.LINEAR)
    return 2.0 * shape.rows * shape.length * config.layers * elements


def attention(config: ModelConfig, shape: Pass) -> float:
    """Scores and mixing of values, once."""
    return 4.0 * shape.rows * shape.length**2 * config.layers * config.heads * config.head_dim


def head(config: ModelConfig, shape: Pass) -> float:
    """The vocabulary's products, once."""
    return 2.0 * shape.rows * shape.head_positions * config.width * config.vocab_size


def forward(config: ModelConfig, shape: Pass) -> float:
    """One forward pass."""
    return linear(config, shape) + attention(config, shape) + head(config, shape)


def part(config: ModelConfig, first: int, last: int) -> ModelConfig:
    """The model with the layers from `first` up to `last` alone."""
    return dataclasses.replace(config, layers=last - first, local_layers=())


def input_gradient(config: ModelConfig, shape: Pass) -> float:
    """Forward, and backward to the embeddings alone: what a step of the attack needs."""
    return 2 * linear(config, shape) + 3 * attention(config, shape) + 2 * head(config, shape)


def attack(config: ModelConfig, steps: int, sites: tuple[int, ...], best: bool, shape: Pass) -> float:
    """The inner maximisation: `steps` gradients at the sites, and for the best iterate the last one's loss; of no steps the loss alone.

    Below the first site nothing changes from step to step.
    """
    above = part(config, min(sites), config.layers)
    return steps * input_gradient(above, shape) + (forward(above, shape) if best or not steps else 0.0)


def stream(config: ModelConfig, layer: int, shape: Pass) -> float:
    """Forward to the residual stream before a layer, once."""
    if not layer:
        return 0.0
    below = part(config, 0, layer)
    return linear(below, shape) + attention(below, shape)


def adapters(config: ModelConfig, shape: Pass, rank: int) -> float:
    """Forward, input gradient and weight gradient of the LoRA factors beside all linear layers."""
    table = lora_lib.table(config, rank)
    elements = sum(table[name][part].shape[1] * table[name][part].shape[2] for name in lora_lib.LINEAR for part in ("a", "b"))
    return 3 * 2.0 * shape.rows * shape.length * config.layers * elements


def merging(config: ModelConfig, rank: int) -> float:
    """A B of every adapted layer."""
    table = weights.table(config)["layers"]
    return 2.0 * rank * config.layers * sum(table[name].shape[1] * table[name].shape[2] for name in lora_lib.LINEAR)


def train_step(config: ModelConfig, inner: float, outer: Pass, rank: int) -> dict[str, float]:
    """One training step by scope: the attack, which takes `inner`, then the outer loss and its gradient."""
    inner += merging(config, rank) if rank else 0.0
    if rank:
        return {"attack": inner, "defence": input_gradient(config, outer) + adapters(config, outer, rank)}
    return {"attack": inner, "defence": input_gradient(config, outer) + linear(config, outer) + head(config, outer)}


def infill(config: ModelConfig, steps: int, shape: Pass) -> float:
    """Infilling: a forward pass per denoising step."""
    return steps * forward(config, shape)


def generate(config: ModelConfig, rows: int, prompt: int, new_tokens: int) -> float:
    """Decoding with a cache: the prompt, then one position at a time against all slots."""
    prefill = forward(config, Pass(rows, prompt, 1))
    one = linear(config, Pass(rows, 1, 1)) + head(config, Pass(rows, 1, 1))
    scores = 4.0 * rows * (prompt + new_tokens) * config.layers * config.heads * config.head_dim
    return prefill + (new_tokens - 1) * (one + scores)
