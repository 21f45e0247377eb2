"""Infilling with a masked-diffusion LM: any set of masked positions, one jitted scan over denoising steps.

Notable choices: the quotas, the order and the noise of a row depend on that row alone (its key, its valid tokens), so neither the
rest of the batch nor padding changes it; the head runs at candidate positions only, and at the few positions about to be committed
when the order does not depend on the logits; a step in which no row commits anything is skipped, which is exact because the network
has no time input. With remasking "random", temperature 1 and as many steps as masks this draws from the model's own any-order
distribution (first-hitting sampler, arXiv 2409.02908).
B batch, T positions, C candidate positions, S denoising steps, V vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dat_jax.diffusion.denoiser import guided_logits, mask_id
from dat_jax.diffusion.proposal import CONFIDENCES, Proposal, first, propose, ranks
from dat_jax.diffusion.schedule import SCHEDULES, block_count, most_open, quotas
from dat_jax.models.config import ModelConfig

Params = Any
REMASKINGS = ("random", *CONFIDENCES, "ancestral")
TOKEN, ORDER, HIDDEN_COUNT, HIDDEN_ORDER, MASK_ORDER, COUNT = range(6)  # what a row's key is used for
PURPOSES = 8


@dataclasses.dataclass(frozen=True)
class InfillSettings:
    """How masked positions are filled; the defaults draw from the model's own distribution when steps >= masked positions.

    remasking: "random" order; "low_confidence" (LLaDA; Dream's maskgit_plus), "margin" (topk_margin), "entropy": surest first;
    "ancestral" (Dream's origin): each position by itself with probability 1 - s / t.
    """

    steps: int = 64  # denoising steps over all blocks
    remasking: str = "random"
    temperature: float = 1.0  # 0: the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    order_temperature: float = 0.0  # > 0: draws the positions without replacement from softmax(confidence / this) (Dream alg_temp)
    tempered_confidence: bool = False  # True: confidence of the tempered, filtered distribution (Dream); False: of the model's (LLaDA)
    condition_remasking: float = 0.0  # largest share of the row whose given tokens a step hides (inpainting reference: 1.0)
    cfg_scale: float = 0.0
    block_length: int = 0  # semi-autoregressive blocks of that many positions; 0: one block
    tile_row: bool = False  # True: blocks tile the whole row (dllm); False: the masked positions
    schedule: str = "even"
    epsilon: float = 1e-3  # last time of the "times" schedule and of "ancestral"
    forbidden: tuple[int, ...] = ()  # token ids that are never drawn
    late: tuple[int, ...] = ()  # token ids that get confidence 0

    def __post_init__(self) -> None:
        """Rejects settings that have no meaning, naming the key."""
        if self.remasking not in REMASKINGS:
            raise ValueError(f"config.sampler.remasking is {self.remasking!r}; allowed: {', '.join(REMASKINGS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"config.sampler.schedule is {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        for name, low, high in (("steps", 1, None), ("temperature", 0, None), ("top_p", 0, 1), ("top_k", 0, None), ("cfg_scale", 0, None),
                                ("condition_remasking", 0, 1), ("block_length", 0, None), ("order_temperature", 0, None)):  # fmt: skip
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ValueError(f"config.sampler.{name} is {value}; allowed: at least {low}" + (f" and at most {high}" if high else ""))


@struct.dataclass
class Noise:
    """Recorded randomness that replaces the keys, to replay another implementation's run (either may be None)."""

    gumbel_SxBxTxV: jax.Array | None = None
    order_SxBxT: jax.Array | None = None


@struct.dataclass
class Infilled:
    """Finished rows: tokens, log p(token | what was visible when it was committed) (nats; 0 at given positions), forward passes per row.

    With one token per step in random order at temperature 1 the sum of `log_prob_BxT` is a one-draw unbiased estimate of the bound that
    `likelihood` estimates. `history_SxBxT` holds the canvas after each step when asked for. `full_passes` and `block_passes` are what fast
    infilling ran for all rows together, of all positions and of the block alone.
    """

    tokens_BxT: jax.Array
    log_prob_BxT: jax.Array
    forwards_B: jax.Array
    history_SxBxT: jax.Array | None = None
    full_passes: jax.Array | None = None
    block_passes: jax.Array | None = None


@struct.dataclass
class Canvas:
    """What a denoising step changes."""

    tokens_BxT: jax.Array
    open_BxT: jax.Array  # still masked
    log_prob_BxT: jax.Array
    forwards_B: jax.Array


def row_keys(key: jax.Array, ids_B: jax.Array) -> jax.Array:
    """One key per row from the ids of the samples, so that a sample does not depend on the batch it is drawn in."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(ids_B)


def step_keys(keys_B: jax.Array, step: jax.Array | int, purpose: int) -> jax.Array:
    """One key per row for one use in one step, which is the same for all rows or each row's own (B,)."""
    return jax.vmap(jax.random.fold_in)(keys_B, jnp.broadcast_to(jnp.asarray(step) * PURPOSES + purpose, keys_B.shape))


def position_keys(keys_B: jax.Array, step: jax.Array, purpose: int, valid_BxT: jax.Array) -> jax.Array:
    """Keys (B, T) for one use in one step (see `step_keys`); padding in front of a row shifts its positions but not their keys."""
    index_BxT = jnp.cumsum(valid_BxT, axis=1)
    per_row = step_keys(keys_B, step, purpose)
    return jax.vmap(lambda key, index_T: jax.vmap(lambda index: jax.random.fold_in(key, index))(index_T))(per_row, index_BxT)


def uniforms(keys_BxT: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Uniform numbers of the given shape per key."""
    return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, shape)))(keys_BxT)


def hide_condition(tokens_BxT: jax.Array, given_BxT: jax.Array, valid_BxT: jax.Array, keys_B: jax.Array, step: jax.Array,
                   share: float, mask_token: int) -> jax.Array:  # fmt: skip
    """Masks the given tokens among r random positions of a row, r ~ U{1 .. share * length} (inpainting attack)."""
    length_B = jnp.sum(valid_BxT, axis=1)
    most_B = jnp.maximum(jnp.round(share * length_B).astype(jnp.int32), 1)
    count_B = 1 + jnp.floor(jax.vmap(jax.random.uniform)(step_keys(keys_B, step, HIDDEN_COUNT)) * most_B).astype(jnp.int32)
    chosen_BxT = ranks(uniforms(position_keys(keys_B, step, HIDDEN_ORDER, valid_BxT)), valid_BxT) < count_B[:, None]
    return jnp.where(chosen_BxT & given_BxT, mask_token, tokens_BxT)


def masked_canvas(config: ModelConfig, tokens_BxT: jax.Array, infill_mask_BxT: jax.Array) -> Canvas:
    """The canvas before the first step: masks at the positions to fill."""
    return Canvas(
        tokens_BxT=jnp.where(infill_mask_BxT, mask_id(config), tokens_BxT).astype(jnp.int32),
        open_BxT=infill_mask_BxT,
        log_prob_BxT=jnp.zeros(tokens_BxT.shape, jnp.float32),
        forwards_B=jnp.zeros(tokens_BxT.shape[0], jnp.int32),
    )


def commit(canvas: Canvas, positions_BxC: jax.Array, accepted_BxC: jax.Array, proposal: Proposal, counted_B: jax.Array) -> Canvas:
    """Writes the accepted proposals into the canvas and closes their positions."""
    rows_Bx1 = jnp.arange(positions_BxC.shape[0])[:, None]

    def write(old_BxT: jax.Array, new_BxC: jax.Array) -> jax.Array:
        return old_BxT.at[rows_Bx1, positions_BxC].set(jnp.where(accepted_BxC, new_BxC, old_BxT[rows_Bx1, positions_BxC]))

    return Canvas(
        tokens_BxT=write(canvas.tokens_BxT, proposal.tokens_BxC),
        open_BxT=write(canvas.open_BxT, jnp.zeros_like(accepted_BxC)),
        log_prob_BxT=write(canvas.log_prob_BxT, proposal.log_prob_BxC),
        forwards_B=canvas.forwards_B + counted_B,
    )


def proposals(params: Params, config: ModelConfig, settings: InfillSettings, canvas: Canvas, given_BxT: jax.Array, valid_BxT: jax.Array,
              positions_BxC: jax.Array, keys_B: jax.Array, step: jax.Array, gumbel_BxTxV: jax.Array | None) -> Proposal:  # fmt: skip
    """One forward pass and a proposed token at each candidate position."""
    tokens_BxT = canvas.tokens_BxT
    if settings.condition_remasking > 0:
        tokens_BxT = hide_condition(tokens_BxT, given_BxT, valid_BxT, keys_B, step, settings.condition_remasking, mask_id(config))
    logits_BxCxV = guided_logits(params, config, tokens_BxT, valid_BxT, given_BxT, positions_BxC, settings.cfg_scale)
    gumbel_BxCxV = uniform_BxCx2 = None
    if gumbel_BxTxV is not None:
        gumbel_BxCxV = jnp.take_along_axis(gumbel_BxTxV, positions_BxC[..., None], axis=1)
    elif settings.temperature > 0:
        uniform_BxCx2 = uniforms(jnp.take_along_axis(position_keys(keys_B, step, TOKEN, valid_BxT), positions_BxC, axis=1), (2,))
    return propose(
        logits_BxCxV, uniform_BxCx2, gumbel_BxCxV, temperature=settings.temperature, confidence=settings.remasking,
        forbidden=settings.forbidden, late=settings.late, top_p=settings.top_p, top_k=settings.top_k,
        tempered_confidence=settings.tempered_confidence,
    )  # fmt: skip


def reveal_shares(steps: int, epsilon: float) -> jax.Array:
    """The probability 1 - s / t with which an ancestral step reveals a masked position; 1 in the last step."""
    time_S = jnp.linspace(1.0, epsilon, steps + 1, dtype=jnp.float32)
    return jnp.where(jnp.arange(steps) == steps - 1, 1.0, 1.0 - time_S[1:] / time_S[:-1])


def accept(settings: InfillSettings, confidence_BxC: jax.Array, order_BxC: jax.Array | None, eligible_BxC: jax.Array, quota_B: jax.Array,
           reveal: jax.Array) -> jax.Array:  # fmt: skip
    """The candidates (B, C) that are committed in this step."""
    if order_BxC is not None and settings.remasking == "ancestral":
        return eligible_BxC & (order_BxC < reveal)
    if settings.remasking == "random":  # the candidates are the first of the random order already
        return eligible_BxC & (jnp.arange(eligible_BxC.shape[1])[None] < quota_B[:, None])
    if order_BxC is not None and settings.order_temperature > 0:
        gumbel_BxC = -jnp.log(-jnp.log(jnp.clip(order_BxC, 1e-7, 1 - 1e-7)))
        confidence_BxC = confidence_BxC / settings.order_temperature + gumbel_BxC
    return eligible_BxC & (ranks(confidence_BxC, eligible_BxC) < quota_B[:, None])


def phases(span: int, settings: InfillSettings, steps_per_block: int, blocks: int) -> list[tuple[int, int, int]]:
    """Splits the steps into runs (first step, last step + 1, candidate positions): one, or four where that saves the head's work."""
    within = min(settings.block_length or span, span)
    if settings.remasking == "random" and settings.schedule == "even":
        return [(0, blocks * steps_per_block, -(-within // steps_per_block))]
    if blocks > 1 or settings.remasking == "ancestral" or settings.schedule != "even" or steps_per_block < 32:
        return [(0, blocks * steps_per_block, within)]
    bound = most_open(span, steps_per_block)
    edges = [steps_per_block * quarter // 4 for quarter in range(5)]
    return [(start, stop, bound[start]) for start, stop in itertools.pairwise(edges)]


@partial(jax.jit, static_argnames=("config", "settings", "span", "history"))
def infill(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    infill_mask_BxT: jax.Array,
    valid_BxT: jax.Array,
    keys_B: jax.Array,
    settings: InfillSettings,
    span: int | None = None,
    noise: Noise | None = None,
    history: bool = False,
) -> Infilled:
    """Fills the positions of `infill_mask_BxT` and leaves every other token as it is.

    `span` (static) promises that no row has more masked positions than that; the head then never runs at more. `keys_B` are per-row
    keys (`row_keys`). `noise` replays recorded randomness. Reproduces LLaDA generate.py, Dream diffusion_generate and dllm
    MDLMSampler.infill under the matching settings, see the tests.
    """
    length = tokens_BxT.shape[1]
    span = min(span or length, length)
    infill_mask_BxT = infill_mask_BxT & valid_BxT
    blocks = block_count(length if settings.tile_row else span, settings.block_length)
    per_block = -(-settings.steps // blocks)
    index_BxT = jnp.cumsum(valid_BxT if settings.tile_row else infill_mask_BxT, axis=1) - 1
    block_BxT = index_BxT // settings.block_length if settings.block_length else jnp.zeros_like(index_BxT)
    masked_BxN = jnp.stack([jnp.sum(infill_mask_BxT & (block_BxT == block), axis=1) for block in range(blocks)], axis=1)
    quota_SxB = quotas(masked_BxN, per_block, settings.schedule, settings.epsilon)
    reveal_S = jnp.tile(reveal_shares(per_block, settings.epsilon), blocks)
    noise = noise or Noise()

    def denoise(canvas: Canvas, inputs: tuple[jax.Array, ...], candidates: int) -> Canvas:
        step, quota_B, reveal, gumbel_BxTxV, order_BxT = inputs
        eligible_BxT = canvas.open_BxT & (block_BxT == step // per_block)
        if order_BxT is None and (settings.remasking in ("random", "ancestral") or settings.order_temperature > 0):
            order_BxT = uniforms(position_keys(keys_B, step, ORDER, valid_BxT))
        # A random order does not wait for the logits: the head sees only the positions that will be committed.
        by_BxT = order_BxT if settings.remasking == "random" else -jnp.arange(length, dtype=jnp.float32)[None]
        positions_BxC = first(jnp.broadcast_to(by_BxT, eligible_BxT.shape), eligible_BxT, candidates)
        eligible_BxC = jnp.take_along_axis(eligible_BxT, positions_BxC, axis=1)
        order_BxC = None if order_BxT is None else jnp.take_along_axis(order_BxT, positions_BxC, axis=1)
        proposal = proposals(params, config, settings, canvas, ~infill_mask_BxT, valid_BxT, positions_BxC, keys_B, step, gumbel_BxTxV)
        accepted_BxC = accept(settings, proposal.confidence_BxC, order_BxC, eligible_BxC, quota_B, reveal)
        return commit(canvas, positions_BxC, accepted_BxC, proposal, jnp.any(accepted_BxC, axis=1))

    def step_of(candidates: int) -> Callable[..., tuple[Canvas, jax.Array | None]]:
        def step(canvas: Canvas, inputs: tuple[jax.Array, ...]) -> tuple[Canvas, jax.Array | None]:
            busy = jnp.any(inputs[1] > 0) if settings.remasking != "ancestral" else jnp.any(canvas.open_BxT)
            canvas = jax.lax.cond(busy, lambda c: denoise(c, inputs, candidates), lambda c: c, canvas)
            return canvas, canvas.tokens_BxT if history else None

        return step

    canvas = masked_canvas(config, tokens_BxT, infill_mask_BxT)
    inputs = (jnp.arange(blocks * per_block), quota_SxB, reveal_S, noise.gumbel_SxBxTxV, noise.order_SxBxT)
    canvases: list[Any] = []
    with jax.named_scope("sampler"):
        for start, stop, candidates in phases(span, settings, per_block, blocks):
            canvas, trace = jax.lax.scan(step_of(candidates), canvas, jax.tree.map(itemgetter(slice(start, stop)), inputs))
            canvases.append(trace)
    return Infilled(
        tokens_BxT=canvas.tokens_BxT, log_prob_BxT=canvas.log_prob_BxT, forwards_B=canvas.forwards_B,
        history_SxBxT=jnp.concatenate(canvases) if history else None,
    )  # fmt: skip


def generate(
    params: Params,
    config: ModelConfig,
    prompt_BxP: jax.Array,
    valid_BxP: jax.Array,
    keys_B: jax.Array,
    settings: InfillSettings,
    new_tokens: int,
    noise: Noise | None = None,
    history: bool = False,
) -> Infilled:
    """Appends `new_tokens` masked positions to left-padded prompts and fills them: LLaDA generate.py and Dream diffusion_generate.

    LLaDA there wants block_length to divide new_tokens and the blocks to divide steps; here any numbers do.
    """
    rows = prompt_BxP.shape[0]
    added_BxG = jnp.full((rows, new_tokens), True)
    tokens_BxT = jnp.concatenate([prompt_BxP, jnp.zeros((rows, new_tokens), prompt_BxP.dtype)], axis=1)
    infill_mask_BxT = jnp.concatenate([jnp.zeros_like(valid_BxP), added_BxG], axis=1)
    valid_BxT = jnp.concatenate([valid_BxP, added_BxG], axis=1)
    return infill(params, config, tokens_BxT, infill_mask_BxT, valid_BxT, keys_B, settings, new_tokens, noise, history)
