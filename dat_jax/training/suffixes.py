"""Discrete suffixes of the request: which tokens they may hold, their loss, and the tokens that the gradient favors in each place.

Zou et al., arXiv 2307.15043. The attack GCG searches with these, and a method that trains against suffixes does.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data import plain_text
from dat_jax.data.conversations import Conversations
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training.network import Network, embed, example_mean, response_nll


def admissible(model: Model, ascii_only: bool, key: str = "attacks.gcg.ascii_only") -> np.ndarray:
    """Which tokens a candidate may hold, (V,): no control token, none that spells nothing, and where asked only printable ASCII.

    Raises ValueError naming the key when none is left.
    """
    tokenizer, rows = model.tokenizer, model.params["embedding"].shape[0]  # a model may have more rows than its tokenizer has tokens
    control = set(plain_text.control_tokens(tokenizer).values())
    texts = tokenizer.batch_decode([[token] for token in range(min(rows, len(tokenizer)))], clean_up_tokenization_spaces=False)
    allowed_V = np.zeros(rows, bool)
    allowed_V[: len(texts)] = [
        text != "" and token not in control and (not ascii_only or (text.isascii() and text.isprintable()))
        for token, text in enumerate(texts)
    ]
    if not allowed_V.any():
        raise ValueError(f"config.{key} is {ascii_only}; the tokenizer of {tokenizer.name_or_path!r} has no such token")
    return allowed_V


@functools.partial(jax.jit, static_argnames=("config", "prompt_length"))
def suffix_losses(
    params: Any, config: ModelConfig, rows: Conversations, refused: Conversations | None, weight: Any, prompt_length: int
) -> jax.Array:
    """Returns the objective of each row, (B,)."""
    return objective(Network(params, None, config, prompt_length), rows, refused, weight)


@functools.partial(jax.jit, static_argnames=("config", "count", "prompt_length"))
def favored_tokens(
    params: Any, config: ModelConfig, rows: Conversations, refused: Conversations | None, weight: Any, columns_S: Any, allowed_V: Any,
    count: int, prompt_length: int,
) -> jax.Array:  # fmt: skip
    """Returns the allowed tokens BxSxK along which each row's objective falls fastest, K = `count`."""
    return favored(Network(params, None, config, prompt_length), rows, refused, weight, columns_S, allowed_V, count)


def favored(
    network: Network, rows: Conversations, refused: Conversations | None, weight: Any, columns_S: Any, allowed_V: Any, count: int
) -> jax.Array:
    """As `favored_tokens`, within a program."""
    grad_BxSxV = token_gradient(network, rows, refused, weight, columns_S)
    return jax.lax.top_k(jnp.where(jnp.asarray(allowed_V)[None, None], -grad_BxSxV, -jnp.inf), count)[1]


def objective(
    network: Network, rows: Conversations, refused: Conversations | None, weight: Any, columns_S: Any = None,
    suffix_BxSxD: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Returns nll(target) - weight * nll(refusal), each a mean over its tokens (nats), (B,).

    refused: the rows with the refusal as response; None: nll(target) alone. suffix_BxSxD: embeddings in place of the tokens' own.
    columns_S: where the suffix stands, in all rows, or BxS: in each.
    """

    def nll(rows: Conversations) -> jax.Array:
        e_BxTxD = embed(network, rows)
        if suffix_BxSxD is not None:
            e_BxTxD = e_BxTxD.at[_places(rows, columns_S)].set(suffix_BxSxD)
        return example_mean(response_nll(network, e_BxTxD, rows), rows, network.prompt_length)

    return nll(rows) if refused is None else nll(rows) - weight * nll(refused)


def token_gradient(network: Network, rows: Conversations, refused: Conversations | None, weight: Any, columns_S: Any) -> jax.Array:
    """Returns the gradient of each row's objective with respect to the suffix's one-hot tokens, BxSxV float32.

    An embedding is the one-hot token times the embedding matrix; so this is the embedding's gradient times the matrix transposed.
    """

    def total(suffix_BxSxD: jax.Array) -> jax.Array:
        return jnp.sum(objective(network, rows, refused, weight, columns_S, suffix_BxSxD))

    grad_BxSxD = jax.grad(total)(embed(network, rows)[_places(rows, columns_S)])
    return jnp.einsum("bsd,vd->bsv", grad_BxSxD, network.params["embedding"], preferred_element_type=jnp.float32)


def _places(rows: Conversations, columns_S: Any) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of the suffixes' tokens, both BxS."""
    shape = (len(rows.tokens_BxT), jnp.shape(columns_S)[-1])
    return jnp.broadcast_to(jnp.arange(shape[0])[:, None], shape), jnp.broadcast_to(columns_S, shape)


def behind(network: Network, rows: Conversations, suffix_BxS: jax.Array) -> tuple[Network, Conversations, jax.Array]:
    """Returns the rows with a suffix behind the users' last word, where the suffixes stand (BxS), and the network for such rows.

    The prompt block is S tokens longer, so no prompt is cut. `prompt_mask` must hold the users' words alone (config.data.perturb="user").
    """
    (B, T), S, P = rows.tokens_BxT.shape, suffix_BxS.shape[1], network.prompt_length
    end_Bx1 = P - jnp.argmax(rows.prompt_mask_BxT[:, :P][:, ::-1], axis=1)[:, None]
    place_BxU = jnp.broadcast_to(jnp.arange(T + S)[None], (B, T + S))
    inside_BxU = (place_BxU >= end_Bx1) & (place_BxU < end_Bx1 + S)
    source_BxU = jnp.where(place_BxU < end_Bx1, place_BxU, jnp.maximum(place_BxU - S, 0))
    written_BxU = jnp.take_along_axis(suffix_BxS, jnp.clip(place_BxU - end_Bx1, 0, S - 1), axis=1)

    def longer(x_BxT: Any) -> jax.Array:
        return jnp.take_along_axis(jnp.asarray(x_BxT), source_BxU, axis=1)

    made = Conversations(
        tokens_BxT=jnp.where(inside_BxU, written_BxU, longer(rows.tokens_BxT)),
        prompt_mask_BxT=longer(rows.prompt_mask_BxT) | inside_BxU,
        response_mask_BxT=longer(rows.response_mask_BxT) & ~inside_BxU,
        valid_BxT=longer(rows.valid_BxT) | inside_BxU,
    )
    # The splash kernel takes lengths that are multiples of 128; no other is asked for a block that is a few tokens longer.
    config = dataclasses.replace(network.config, attention="xla")
    return network.replace(config=config, prompt_length=P + S), made, end_Bx1 + jnp.arange(S)[None]  # type: ignore[attr-defined]
