"""Log-likelihoods of given texts under the victim: choices of questions, answers of chats; batches of few fixed shapes."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.attacks.victim import Victim
from dat_jax.data.conversations import Conversations, lay_out
from dat_jax.models import flops, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.training import network as networks
from dat_jax.training.network import Network

LOGITS = 2**25  # numbers of the head's output that a device holds at a time
CONTINUATIONS = (8, 32, 128, 512)  # tokens; blocks of longer choices are multiples of the last
DEFAULT_LENGTH = 2048  # positions of a model that does not say how many it has, as in lm-eval

Ids = list[int]
Item = TypeVar("Item")


def log_likelihoods(victim: Victim, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """The log-likelihood of each continuation's tokens behind its context's, in nats, summed over them; (context, continuation) pairs.

    Pairs of more tokens than the model has positions lose the beginning of their context. Continuations of one token behind the same
    context share a row.
    """
    most = (victim.model.config.max_length or DEFAULT_LENGTH) + 1  # the last token is no input
    found = np.zeros(len(pairs))
    single: dict[tuple[int, ...], list[int]] = {}
    longer: list[int] = []
    cut = [(list(before), list(after)) for before, after in pairs]
    for row, (before, after) in enumerate(cut):
        before[:] = (before + after)[-most:][: -len(after)]
        if not before:
            raise ValueError(f"a choice has {len(after)} tokens; allowed: fewer than the model's {most - 1} positions")
        if len(after) == 1:
            single.setdefault(tuple(before), []).append(row)
        else:
            longer.append(row)
    block = victim.decoding.block
    for groups in _grouped(single.items(), lambda group: _block(len(group[0]), block)):
        _score_single(victim, groups, cut, found)
    for rows in _grouped(longer, lambda row: (_block(len(cut[row][0]), block), _continuation(len(cut[row][1])))):
        _score_longer(victim, rows, cut, found)
    return found.tolist()


def response_sums(victim: Victim, original: Model | None, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[tuple[float, float]]:
    """Per row the sums over the response's tokens, in nats: of -log p(token), and of KL(original || model), NaN without an original.

    Responses are cut at the victim's response block. The original must be of the model's own sizes.
    """
    how, found = victim.decoding, np.zeros((len(prompts), 2))
    other = None if original is None else original.params
    for rows in _grouped(range(len(prompts)), lambda row: _block(len(prompts[row]), how.block)):
        P = _block(max(len(prompts[row]) for row in rows), how.block)
        laid_out = _laid_out([prompts[row] for row in rows], [responses[row] for row in rows], P, how.response_length)
        shape = victim.shape(len(rows), P)
        victim.spent["flops"] += flops.forward(victim.model.config, shape) * (1 if original is None else 2)

        def sums(batch: Conversations, P: int = P) -> jax.Array:
            return token_sums(victim.model.params, other, victim.model.config, batch, P, _logits(victim))

        found[rows] = victim.of_rows(laid_out, sums, how.batch_size)
    return [(float(nll), float(kl)) for nll, kl in found]


@functools.partial(jax.jit, static_argnames=("config", "prompt_length", "most_logits"))
def token_sums(params: Any, original: Any, config: ModelConfig, rows: Conversations, prompt_length: int, most_logits: int) -> jax.Array:
    """Sums over each row's response tokens: -log p, and KL(original || model) or NaN where `original` is None; Bx2 float32."""
    model = Network(params, None, config, prompt_length, most_logits)
    h_BxRxD = networks.response_hidden(model, networks.embed(model, rows), rows)
    nll_B = jnp.sum(networks.nll(model, h_BxRxD, rows), axis=1)
    if original is None:
        return jnp.stack([nll_B, jnp.full_like(nll_B, jnp.nan)], axis=1)
    kl_BxR = networks.kl(model, Network(original, None, config, prompt_length, most_logits), h_BxRxD, rows)
    return jnp.stack([nll_B, jnp.sum(kl_BxR, axis=1)], axis=1)


@functools.partial(jax.jit, static_argnames=("config",))
def next_token(params: Any, config: ModelConfig, tokens_BxP: jax.Array, valid_BxP: jax.Array, ids_BxK: jax.Array) -> jax.Array:
    """The log-probability of each of some tokens behind the last position, BxK float32."""
    h_BxPxD = transformer.hidden(params, config, transformer.embed(params, config, tokens_BxP), valid_BxP)
    logp_BxV = jax.nn.log_softmax(transformer.head(params, config, h_BxPxD[:, -1]), axis=-1)
    return jnp.take_along_axis(logp_BxV, ids_BxK, axis=1)


def _score_single(victim: Victim, groups: Sequence[tuple[tuple[int, ...], list[int]]], pairs: Any, found: np.ndarray) -> None:
    """Fills `found` for continuations of one token: one row per context, whose groups have the numbers of their pairs."""
    model, how = victim.model, victim.decoding
    P, K = _block(max(len(ids) for ids, _ in groups), how.block), max(4, *(len(numbers) for _, numbers in groups))
    laid_out = _laid_out([list(ids) for ids, _ in groups], [[]] * len(groups), P, 1)
    ids_NxK = np.zeros((len(groups), K), np.int32)
    for row, (_, numbers) in enumerate(groups):
        ids_NxK[row, : len(numbers)] = [pairs[number][1][0] for number in numbers]
    victim.spent["flops"] += flops.forward(model.config, Pass(len(groups), P, 1))
    rows = (laid_out.tokens_BxT[:, :P], laid_out.valid_BxT[:, :P], ids_NxK)
    scores_NxK = victim.of_rows(rows, lambda batch: next_token(model.params, model.config, *batch), how.batch_size)
    for (_, numbers), scores_K in zip(groups, scores_NxK):
        found[numbers] = scores_K[: len(numbers)]


def _score_longer(victim: Victim, rows: list[int], pairs: Any, found: np.ndarray) -> None:
    """Fills `found` for continuations of several tokens, all of one shape."""
    before, after = ([pairs[row][side] for row in rows] for side in (0, 1))
    P, R = _block(max(map(len, before)), victim.decoding.block), _continuation(max(map(len, after)))
    victim.spent["flops"] += flops.forward(victim.model.config, Pass(len(rows), P + R, R))

    def sums(batch: Conversations) -> jax.Array:
        return token_sums(victim.model.params, None, victim.model.config, batch, P, _logits(victim))

    found[rows] = -victim.of_rows(_laid_out(before, after, P, R), sums, victim.decoding.batch_size)[:, 0]


def _laid_out(prompts: Sequence[Ids], responses: Sequence[Ids], prompt_length: int, response_length: int) -> Conversations:
    return lay_out(prompts, [[False] * len(ids) for ids in prompts], responses, prompt_length, response_length)


def _block(length: int, block: int) -> int:
    """The smallest of block, 2 block, 4 block, ... that holds so many tokens: few shapes, whatever the lengths."""
    while block < length:
        block *= 2
    return block


def _continuation(length: int) -> int:
    longest = CONTINUATIONS[-1]
    return next((size for size in CONTINUATIONS if size >= length), -(-length // longest) * longest)


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> Iterable[list[Item]]:
    """The items with the same key, together."""
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found.values()


def _logits(victim: Victim) -> int:
    return LOGITS * (victim.mesh.size if victim.mesh is not None else 1)
