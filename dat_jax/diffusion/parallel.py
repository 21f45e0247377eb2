"""Fast infilling: as many tokens per forward pass as the model is sure of, and keys and values kept between passes.

Notable choices: positions are chosen from the predicted distributions before tokens are drawn, so a rule never prefers likely draws;
what is lost is the dependence between tokens committed together (bounded by the entropy rule) and, with a cache, its freshness.
Every pass commits at least one token of every row that takes part in it. The rows of a pass sit in slots, which finished rows leave to
waiting ones; a row's result depends on its own key, tokens and number of passes, not on its slot or on the other rows.
N rows, B slots, T positions, C candidate positions, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dat_jax.diffusion.caching import Cache, block_pass, full_pass
from dat_jax.diffusion.proposal import first, forbid, propose
from dat_jax.diffusion.sampler import ORDER, TOKEN, Canvas, Infilled, commit, masked_canvas, position_keys, uniforms
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig

Params = Any
ACCEPTANCES = ("threshold", "factor", "entropy", "count")


@dataclasses.dataclass(frozen=True)
class FastSettings:
    """Which of the masked positions a pass commits: always the first of the order, and then

    threshold  all whose likeliest token has at least probability `bound`                        (Fast-dLLM)
    factor     rank r, while the probability is at least 1 - bound / (r + 1)                     (Fast-dLLM)
    entropy    the longest prefix with sum(H) - max(H) <= bound nats, H each position's entropy  (EB-sampler, arXiv 2505.24857)
    count      the first `bound` positions
    """

    acceptance: str = "entropy"
    bound: float = 0.1
    order: str = "sure"  # "sure": least entropy first (threshold, factor: highest probability); "random": bound 0 is then the exact law
    temperature: float = 1.0
    forbidden: tuple[int, ...] = ()
    block_length: int = 0  # blocks of that many masked positions, one after another; 0: one block
    refresh: int = 1  # passes from one full pass to the next; between them only the block given to `infill_fast` runs; 1: no cache

    def __post_init__(self) -> None:
        """Rejects settings that have no meaning, naming the key."""
        if self.acceptance not in ACCEPTANCES:
            raise ValueError(f"config.sampler.acceptance is {self.acceptance!r}; allowed: {', '.join(ACCEPTANCES)}")
        if self.order not in ("sure", "random"):
            raise ValueError(f"config.sampler.order is {self.order!r}; allowed: sure, random")
        for name, low in (("bound", 0), ("temperature", 0), ("block_length", 0), ("refresh", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"config.sampler.{name} is {getattr(self, name)}; allowed: at least {low}")


def accept(logits_BxCxV: jax.Array, eligible_BxC: jax.Array, order_BxC: jax.Array | None, settings: FastSettings) -> jax.Array:
    """The candidates (B, C) that are committed now; `order_BxC` (higher first) replaces the order by certainty."""
    log_p_BxCxV = jax.nn.log_softmax(logits_BxCxV, axis=-1)
    if settings.acceptance in ("threshold", "factor"):
        sure_BxC = jnp.exp(jnp.max(log_p_BxCxV, axis=-1))
    else:
        sure_BxC = jnp.sum(jnp.exp(log_p_BxCxV) * jnp.maximum(log_p_BxCxV, -1e9), axis=-1)  # minus the entropy
    by_BxC = sure_BxC if order_BxC is None else order_BxC
    index_BxC = first(by_BxC, eligible_BxC, by_BxC.shape[1])
    sorted_BxC = jnp.take_along_axis(sure_BxC, index_BxC, axis=1)
    rank_1xC = jnp.arange(by_BxC.shape[1])[None]
    if settings.acceptance == "threshold":
        fine_BxC = sorted_BxC >= settings.bound
    elif settings.acceptance == "factor":
        fine_BxC = jnp.cumprod(sorted_BxC >= 1.0 - settings.bound / (rank_1xC + 2.0), axis=1) > 0
    elif settings.acceptance == "entropy":
        entropy_BxC = jnp.maximum(-sorted_BxC, 0.0)
        together_BxC = jnp.cumsum(entropy_BxC, axis=1) - jax.lax.cummax(entropy_BxC, axis=1)
        fine_BxC = jnp.cumprod(together_BxC <= settings.bound + 1e-6, axis=1) > 0
    else:
        fine_BxC = jnp.broadcast_to(rank_1xC < settings.bound, sorted_BxC.shape)
    fine_BxC = fine_BxC | (rank_1xC == 0)
    rows_Bx1 = jnp.arange(by_BxC.shape[0])[:, None]
    return jnp.zeros_like(eligible_BxC).at[rows_Bx1, index_BxC].set(fine_BxC) & eligible_BxC


@struct.dataclass
class Queue:
    """All N rows and which of them are in the B slots that a pass works on."""

    canvas: Canvas  # of the N rows
    row_B: jax.Array  # the row in each slot; N: the slot is empty
    next: jax.Array  # the first row that has not been in a slot yet
    cache: Cache | None  # of the slots; None: every pass is a full one
    full_passes: jax.Array
    block_passes: jax.Array


def refilled(queue: Queue, open_B: jax.Array) -> Queue:
    """The queue with the next rows in the slots whose row has nothing open any more."""
    rows = queue.canvas.open_BxT.shape[0]
    taken_B = jnp.minimum(queue.next + jnp.cumsum(~open_B) - 1, rows)
    row_B, waiting = jnp.where(open_B, queue.row_B, taken_B), jnp.minimum(queue.next + jnp.sum(~open_B), rows)
    return dataclasses.replace(queue, row_B=row_B, next=waiting)


def predict(
    params: Params,
    config: ModelConfig,
    tokens_BxT: jax.Array,
    valid_BxT: jax.Array,
    positions_BxC: jax.Array,
    block: tuple[int, int] | None,
    cache: Cache | None,
    full: jax.Array,
    due_B: jax.Array,
) -> tuple[jax.Array, Cache | None]:
    """Logits at `positions_BxC` from a full pass, which renews the cache of the rows in `due_B`, or else from one of the block alone.

    Without a cache every pass is a full one.
    """
    shift = 1 if config.logit_shift else 0  # Dream reads the prediction of a position one to its left
    start, stop = block or (0, tokens_BxT.shape[1])
    start = max(start - shift, 0)

    def everything(kept: Cache) -> tuple[jax.Array, Cache]:
        h_BxTxD, fresh = full_pass(params, config, tokens_BxT, valid_BxT)
        due_1xBx1x1x1 = jnp.reshape(due_B, (1, -1, 1, 1, 1))
        return h_BxTxD[:, start:stop], jax.tree.map(lambda new, old: jnp.where(due_1xBx1x1x1, new, old), fresh, kept)

    def block_alone(kept: Cache) -> tuple[jax.Array, Cache]:
        return block_pass(params, config, tokens_BxT, valid_BxT, kept, start, stop)

    if cache is None:
        h_BxMxD = transformer.hidden(params, config, transformer.embed(params, config, tokens_BxT), valid_BxT)[:, start:stop]
    else:
        h_BxMxD, cache = jax.lax.cond(full, everything, block_alone, cache)
    source_BxC = jnp.clip(positions_BxC - shift - start, 0, stop - start - 1)
    return transformer.head(params, config, jnp.take_along_axis(h_BxMxD, source_BxC[..., None], axis=1)), cache


@partial(jax.jit, static_argnames=("config", "settings", "span", "block", "slots"))
def infill_fast(
    params: Params,
    config: ModelConfig,
    tokens_NxT: jax.Array,
    infill_mask_NxT: jax.Array,
    valid_NxT: jax.Array,
    keys_N: jax.Array,
    settings: FastSettings,
    span: int | None = None,
    block: tuple[int, int] | None = None,
    slots: int | None = None,
) -> Infilled:
    """Fills the positions of `infill_mask_NxT` in as few passes as `settings` allows; `forwards_B` says how many each row took.

    `span` (static) bounds the masked positions of a row. `block` (static) bounds where they stand, [start, stop): with refresh > 1 a pass
    runs these positions alone, with the other positions' keys and values from the row's last full pass. `slots` (static; default N) rows
    are in a pass: one that is done leaves its slot to the next that waits, so long rows first keep the slots busy to the end.
    """
    rows, length = tokens_NxT.shape
    slots = min(slots or rows, rows)
    infill_mask_NxT = infill_mask_NxT & valid_NxT
    span = min(span or length, length)
    # Where neither the order nor the number of positions depends on logits, the head runs at the committed positions alone.
    ahead = settings.acceptance == "count" and settings.order == "random"
    candidates = min(settings.block_length or span, span, max(int(settings.bound), 1) if ahead else span)
    index_NxT = jnp.cumsum(infill_mask_NxT, axis=1) - 1
    block_NxT = index_NxT // settings.block_length if settings.block_length else jnp.zeros_like(index_NxT)

    def denoise(queue: Queue) -> Queue:
        canvas, valid_BxT, block_BxT, keys_B = jax.tree.map(
            lambda x: x.at[queue.row_B].get(mode="clip"), (queue.canvas, valid_NxT, block_NxT, keys_N)
        )
        open_BxT, passes_B = canvas.open_BxT & (queue.row_B < rows)[:, None], canvas.forwards_B
        # Every pass commits something in every row that takes part, so a row's passes are counted by its canvas. A row takes part in full
        # passes when its own count says so and in the others otherwise: what it sees of the cache does not depend on its neighbours.
        due_B, open_B = passes_B % settings.refresh == 0, jnp.any(open_BxT, axis=1)
        # A full pass costs more, and rows that are not due stand still in it: it waits until two thirds are due.
        full = 3 * jnp.sum(open_B & due_B) >= 2 * jnp.sum(open_B)
        current_Bx1 = jnp.min(jnp.where(open_BxT, block_BxT, length), axis=1, keepdims=True)
        eligible_BxT = open_BxT & (block_BxT == current_Bx1) & (due_B == full)[:, None]
        order_BxT = jnp.broadcast_to(-jnp.arange(length, dtype=jnp.float32)[None], eligible_BxT.shape)
        if settings.order == "random":
            order_BxT = uniforms(position_keys(keys_B, passes_B, ORDER, valid_BxT))
        positions_BxC = first(order_BxT, eligible_BxT, candidates)
        eligible_BxC = jnp.take_along_axis(eligible_BxT, positions_BxC, axis=1)
        logits_BxCxV, cache = predict(params, config, canvas.tokens_BxT, valid_BxT, positions_BxC, block, queue.cache, full, due_B)
        uniform_BxCx2 = order_BxC = None
        if settings.temperature > 0:
            keys_BxC = jnp.take_along_axis(position_keys(keys_B, passes_B, TOKEN, valid_BxT), positions_BxC, axis=1)
            uniform_BxCx2 = uniforms(keys_BxC, (2,))
        if settings.order == "random":
            order_BxC = jnp.take_along_axis(order_BxT, positions_BxC, axis=1)
        accepted_BxC = accept(forbid(logits_BxCxV, settings.forbidden), eligible_BxC, order_BxC, settings)
        proposal = propose(
            logits_BxCxV, uniform_BxCx2, temperature=settings.temperature, confidence="none", forbidden=settings.forbidden
        )  # fmt: skip
        canvas = commit(canvas, positions_BxC, accepted_BxC, proposal, jnp.any(accepted_BxC, axis=1))
        written = jax.tree.map(lambda all_N, new_B: all_N.at[queue.row_B].set(new_B, mode="drop"), queue.canvas, canvas)
        passes = {"full_passes": queue.full_passes + full, "block_passes": queue.block_passes + ~full}
        queue = dataclasses.replace(queue, canvas=written, cache=cache, **passes)
        return refilled(queue, jnp.any(canvas.open_BxT, axis=1) & (queue.row_B < rows))

    empty = jnp.zeros((config.layers, slots, length, config.kv_heads, config.head_dim), jnp.dtype(config.compute_dtype))
    cache, zero = Cache(k_LxBxTxNxK=empty, v_LxBxTxNxK=empty) if settings.refresh > 1 else None, jnp.zeros((), jnp.int32)
    queue = Queue(
        canvas=masked_canvas(config, tokens_NxT, infill_mask_NxT), row_B=jnp.arange(slots), next=zero + slots,
        cache=cache, full_passes=zero, block_passes=zero,
    )  # fmt: skip
    with jax.named_scope("sampler"):
        queue = jax.lax.while_loop(lambda queue: jnp.any(queue.canvas.open_BxT), denoise, queue)
    return Infilled(
        tokens_BxT=queue.canvas.tokens_BxT, log_prob_BxT=queue.canvas.log_prob_BxT, forwards_B=queue.canvas.forwards_B,
        full_passes=queue.full_passes, block_passes=queue.block_passes,
    )  # fmt: skip
