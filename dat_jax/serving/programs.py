"""What runs on the devices: answers through the decoder, and the log-probabilities of given tokens, in batches of few fixed shapes.

A batch always has the same number of rows. A row's block is the smallest of data.prompt_length times 1, 2, 4 and 8 that holds its prompt.
So each program is compiled once per block, and a request gets the same tokens whatever else is asked at the time.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax import sharding
from dat_jax.attacks.victim import BLOCKS
from dat_jax.data import conversations
from dat_jax.models import decoding, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.decoding import PerRow
from dat_jax.models.huggingface import Model

CHUNK = 64  # positions whose logits are held at a time


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A row that is to be answered."""

    ids: tuple[int, ...]
    limit: int  # new tokens, 1 or more
    temperature: float  # 0: greedy
    top_p: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Given:
    """A row whose tokens are to be scored."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What follows each token of a row of L: the log-probability (nats) of its next one, and the likeliest tokens with theirs."""

    next_L: np.ndarray  # the last one's is without meaning
    top_LxK: np.ndarray
    top_ids_LxK: np.ndarray


@dataclasses.dataclass(frozen=True)
class Programs:
    """A model with the shapes in which it is asked."""

    model: Model
    prompt_length: int  # P: a block is P times 1, 2, 4 or 8
    new_tokens: int  # of an answer, at most
    batch_size: int
    alternatives: int  # K
    mesh: jax.sharding.Mesh | None = None

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end an answer: of the turn, or of the text where the model has no chat template."""
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template:
            return conversations.stop_tokens(tokenizer)
        return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have: the largest block, or what the model was made for less an answer."""
        most, made_for = BLOCKS * self.prompt_length, self.model.config.max_length
        return min(most, made_for - self.new_tokens) if made_for else most

    def shape(self, row: Prompt | Given) -> tuple[str, int]:
        """Which program a row is for: only rows of one shape share a batch."""
        if isinstance(row, Prompt):
            return "answer", self._block(len(row.ids))
        longest = BLOCKS * self.prompt_length
        return "score", self._block(len(row.ids)) if len(row.ids) <= longest else longest + self.new_tokens

    def _block(self, length: int) -> int:
        blocks = math.ceil(length / self.prompt_length)
        return self.prompt_length * (1 << (blocks - 1).bit_length())

    def run(self, rows: Sequence[Any]) -> list[Any]:
        """Answers or scores at most batch_size rows of one shape: of prompts the new ids, of given rows their Scores."""
        kind, length = self.shape(rows[0])
        filled = [*rows, *[rows[-1]] * (self.batch_size - len(rows))]
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            if kind == "score":
                return self._score(filled, length)[: len(rows)]
            filled[len(rows) :] = [dataclasses.replace(row, limit=1) for row in filled[len(rows) :]]  # nobody waits for these
            return self._answer(filled, length)[: len(rows)]

    def _answer(self, rows: Sequence[Prompt], length: int) -> list[list[int]]:
        tokens_BxP, valid_BxP = _laid_out(rows, length, left=True)
        wishes = PerRow(
            temperature_B=jnp.array([row.temperature for row in rows], np.float32),
            top_p_B=jnp.array([row.top_p for row in rows], np.float32),
            limit_B=jnp.array([row.limit for row in rows], np.int32),
        )
        seeds_B = np.array([row.seed for row in rows], np.int32)
        tokens_BxN = answer(
            self.model.params, self.model.config, *self._placed((tokens_BxP, valid_BxP, seeds_B, wishes)),
            max_new_tokens=self.new_tokens, stop_tokens=self.stop_tokens,
        )  # fmt: skip
        return [_ended(row, tokens, self.stop_tokens) for row, tokens in zip(rows, sharding.on_host(tokens_BxN))]

    def _score(self, rows: Sequence[Given], length: int) -> list[Scores]:
        tokens_BxT, valid_BxT = _laid_out(rows, length, left=False)
        found = score(self.model.params, self.model.config, *self._placed((tokens_BxT, valid_BxT)), alternatives=self.alternatives)
        next_BxT, top_BxTxK, ids_BxTxK = map(sharding.on_host, found)
        return [Scores(next_BxT[b, :L], top_BxTxK[b, :L], ids_BxTxK[b, :L]) for b, L in enumerate(len(row.ids) for row in rows)]

    def _placed(self, batch: Any) -> Any:
        return batch if self.mesh is None else sharding.place_batch(self.mesh, batch, self.batch_size)


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "stop_tokens"))
def answer(
    params: Any,
    config: ModelConfig,
    tokens_BxP: jax.Array,
    valid_BxP: jax.Array,
    seeds_B: jax.Array,
    wishes: PerRow,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
) -> jax.Array:
    """Decodes prompts padded on the left, each row as it wishes; returns the new ids BxN."""
    return decoding.generate(
        params,
        config,
        transformer.embed(params, config, jnp.asarray(tokens_BxP)),
        jnp.asarray(valid_BxP),
        jax.vmap(jax.random.key)(seeds_B),
        per_row=wishes,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
    )


@functools.partial(jax.jit, static_argnames=("config", "alternatives"))
def score(
    params: Any, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, *, alternatives: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns for each position the log-probability (nats) BxT of the next token, and the K likeliest ones, BxTxK with their ids."""
    B, T = tokens_BxT.shape
    chunks, K = math.ceil(T / CHUNK), min(alternatives, config.vocab_size)
    h_BxTxD = transformer.hidden(params, config, transformer.embed(params, config, jnp.asarray(tokens_BxT)), jnp.asarray(valid_BxT))
    following_BxT = jnp.roll(jnp.asarray(tokens_BxT), -1, axis=1)

    def cut(x_BxT: jax.Array) -> jax.Array:
        x_BxT = jnp.pad(x_BxT, ((0, 0), (0, chunks * CHUNK - T), *((0, 0),) * (x_BxT.ndim - 2)))
        return x_BxT.reshape(B, chunks, CHUNK, *x_BxT.shape[2:]).swapaxes(0, 1)

    def of_chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        h_BxCxD, next_BxC = part
        logp_BxCxV = jax.nn.log_softmax(transformer.head(params, config, h_BxCxD), axis=-1)
        # A masked sum instead of a gather, as in transformer.log_probs: a sharded vocabulary needs no communication but the sum.
        chosen_BxCxV = jax.lax.broadcasted_iota(jnp.int32, logp_BxCxV.shape, 2) == next_BxC[..., None]
        return jnp.sum(jnp.where(chosen_BxCxV, logp_BxCxV, 0.0), axis=-1), *jax.lax.top_k(logp_BxCxV, K)

    parts = jax.lax.map(of_chunk, (cut(transformer.gathered(config, h_BxTxD)), cut(following_BxT)))
    joined = [x.swapaxes(0, 1).reshape(B, chunks * CHUNK, *x.shape[3:])[:, :T] for x in parts]
    return joined[0], joined[1], joined[2]


def _laid_out(rows: Sequence[Prompt | Given], length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rows' ids in a block, padded on one side, and where they are."""
    tokens_BxT, valid_BxT = np.full((len(rows), length), conversations.PAD, np.int32), np.zeros((len(rows), length), bool)
    for b, row in enumerate(rows):
        place = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
        tokens_BxT[b, place], valid_BxT[b, place] = row.ids, True
    return tokens_BxT, valid_BxT


def _ended(row: Prompt, tokens: np.ndarray, stop: tuple[int, ...]) -> list[int]:
    """The new ids up to and with the one that ends the answer."""
    kept = tokens[: row.limit]
    ends = np.flatnonzero(np.isin(kept, stop))
    return kept[: ends[0] + 1].tolist() if len(ends) else kept.tolist()
