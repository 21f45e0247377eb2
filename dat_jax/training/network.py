"""A language model as the inner maximisation and the losses see it: weights, adapters, and how rows are laid out."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dat_jax.data.conversations import Conversations
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.lora import Lora
from dat_jax.models.transformer import Delta


@flax.struct.dataclass
class Network:
    """Weights with the adapters beside them, and the static layout [prompt | response] of the rows they are run on."""

    params: Any
    lora: Lora | None
    config: ModelConfig = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)
    most_logits: int = flax.struct.field(pytree_node=False, default=0)  # numbers the head may give at a time, over all devices; 0: any
    progress: jax.Array | float = 0.0  # share of the training that is done, for losses that follow a schedule
    memory: Any = ()  # what the method keeps from step to step, for its inner maximisation


@flax.struct.dataclass
class Found:
    """What an inner maximisation found: the perturbation of the prompt block, nats per token without it, and metrics of the search.

    held: a perturbation of utility rows, under which their answers are to stay; None: there is none.
    suffix_BxS: tokens behind the users' words, where that is what was searched. memory: what the method keeps for the next step.
    """

    delta: Delta
    nll_before_B: jax.Array
    metrics: dict[str, jax.Array]
    held: Delta | None = None
    suffix_BxS: jax.Array | None = None
    memory: Any = ()


def embed(network: Network, rows: Conversations) -> jax.Array:
    """Returns the embedding rows e_BxTxD of whole conversations."""
    return transformer.embed(network.params, network.config, rows.tokens_BxT)


def response_nll(network: Network, e_BxTxD: jax.Array, rows: Conversations, delta: Delta | None = None) -> jax.Array:
    """Returns nll_BxR float32 (nats) of the response tokens, zero outside the response; `delta` is added to the prompt block."""
    return nll(network, response_hidden(network, e_BxTxD, rows, delta), rows)


def response_hidden(network: Network, e_BxTxD: jax.Array, rows: Conversations, delta: Delta | None = None) -> jax.Array:
    """Returns the hidden states h_BxRxD that predict the response (a static slice of the layout): the head runs there alone."""
    h_BxTxD = transformer.hidden(network.params, network.config, e_BxTxD, rows.valid_BxT, lora=network.lora, add=delta)
    return h_BxTxD[:, network.prompt_length - 1 : -1]


def nll(network: Network, h_BxRxD: jax.Array, rows: Conversations) -> jax.Array:
    """Returns nll_BxR float32 (nats) of the response tokens from the hidden states that predict them, zero outside the response."""
    config, P = network.config, network.prompt_length
    targets_BxR = rows.tokens_BxT[:, P:]
    B, R = targets_BxR.shape
    chunk = chunk_length(B, R, config.vocab_size, network.most_logits)
    logp_BxR = transformer.log_probs(network.params, config, h_BxRxD, targets_BxR, chunk=chunk)
    return jnp.where(rows.response_mask_BxT[:, P:], -logp_BxR, 0.0)


def kl(network: Network, original: Network, h_BxRxD: jax.Array, rows: Conversations, reverse: bool = False) -> jax.Array:
    """Returns KL(original || network) of each response token, BxR float32 (nats), zero outside the response.

    h_BxRxD: the network's hidden states that predict the response. The original runs on the same rows, unperturbed. reverse: KL(network ||
    original) instead, as in LAT's published code.
    """
    config, mask_BxR = network.config, rows.response_mask_BxT[:, network.prompt_length :]
    theirs_BxRxD = jax.lax.stop_gradient(response_hidden(original, embed(original, rows), rows))
    B, R = mask_BxR.shape
    chunk = chunk_length(B, R, 2 * config.vocab_size, network.most_logits)
    if not reverse:
        kl_BxR = transformer.divergence(network.params, config, h_BxRxD, original.params, theirs_BxRxD, chunk=chunk)
        return jnp.where(mask_BxR, kl_BxR, 0.0)

    def score(h_BxCxD: jax.Array, theirs_BxCxD: jax.Array) -> jax.Array:
        logp_BxCxV = jax.nn.log_softmax(transformer.head(network.params, config, h_BxCxD))
        theirs_BxCxV = jax.lax.stop_gradient(jax.nn.log_softmax(transformer.head(original.params, config, theirs_BxCxD)))
        return jnp.sum(jnp.exp(logp_BxCxV) * (logp_BxCxV - theirs_BxCxV), axis=-1)

    streams = tuple(transformer.gathered(config, x_BxRxD) for x_BxRxD in (h_BxRxD, theirs_BxRxD))
    return jnp.where(mask_BxR, transformer.by_chunks(score, streams, chunk), 0.0)


def chunk_length(rows: int, positions: int, vocabulary: int, most: int) -> int:
    """Returns how many positions of every row the head sees at a time, a divisor of `positions`; 0: all at once.

    Each chunk reads the whole head, so chunks are as long as `most` numbers allow.
    """
    if not most or rows * positions * vocabulary <= most:
        return 0
    return max(size for size in range(1, positions + 1) if positions % size == 0 and (size == 1 or rows * size * vocabulary <= most))


def example_mean(nll_BxR: jax.Array, rows: Conversations, prompt_length: int) -> jax.Array:
    """Returns the mean over each example's response tokens, (B,); 0 for a row without response."""
    count_B = jnp.sum(rows.response_mask_BxT[:, prompt_length:], axis=1)
    return jnp.sum(nll_BxR, axis=1) / jnp.maximum(count_B, 1)
