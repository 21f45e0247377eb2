"""From attempts to judged responses: fixed-size padded batches, one compilation, the same way for every attack and for utility."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax import sharding
from dat_jax.data import conversations
from dat_jax.data.conversations import Conversations
from dat_jax.evaluation.attacks import embedding
from dat_jax.evaluation.attacks.text import Attempt
from dat_jax.models import decoding, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training.perturbation import Attack


@dataclasses.dataclass(frozen=True)
class Settings:
    """How attempts are laid out and decoded; `attack` is used for attempts whose embeddings are perturbed."""

    prompt_length: int  # P, tokens; attempts that need more get the next multiple of it
    response_length: int  # R, tokens of the target that the embedding attack raises
    max_new_tokens: int
    batch_size: int
    temperature: float  # 0: greedy
    perturb: str  # which prompt tokens the perturbation reaches: user | user+template | all
    system: str | None
    attack: Attack


def respond(
    model: Model,
    attempts: Sequence[Attempt],
    settings: Settings,
    seed: int,
    perturbed: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """What the model answers to each attempt, as text: a prefilled beginning once, then what was generated up to the end of the turn.

    Args:
      model: weights, config and tokenizer of the model under attack.
      seed: of the sampling, when settings.temperature > 0; the same for every method.
      perturbed: whether the attempts' embeddings are perturbed first, to raise the likelihood of their targets.
      mesh: batches are spread over its data and fsdp axes; every process must call and gets all responses.
      progress: called with the number of attempts that are done, after each batch.

    Raises:
      ValueError: for a prompt that is too long to tokenize sensibly (more than 8 blocks), or a batch size the mesh does not divide.
    """
    laid_out, prefixes = lay_out(model.tokenizer, attempts, settings, with_targets=perturbed)
    stop = conversations.stop_tokens(model.tokenizer)
    length = laid_out.tokens_BxT.shape[1] - settings.response_length
    static = dict(max_new_tokens=settings.max_new_tokens, stop_tokens=stop, temperature=settings.temperature, prompt_length=length)
    texts: list[str] = []
    for index, rows in enumerate(_batches(len(attempts), settings.batch_size)):
        batch = jax.tree.map(lambda array, rows=rows: array[rows], laid_out)
        placed = batch if mesh is None else sharding.place_batch(mesh, batch, settings.batch_size)
        key = jax.random.fold_in(jax.random.key(seed), index)
        attack = settings.attack if perturbed else None
        tokens_BxN = sharding.on_host(answer(model.params, model.config, placed, key, attack=attack, **static))
        for row, tokens in list(zip(rows, tokens_BxN))[: len(attempts) - len(texts)]:
            texts.append(model.tokenizer.decode(prefixes[row] + _before_stop(tokens, stop), skip_special_tokens=True).strip())
        progress(len(texts))
    return texts


@functools.partial(jax.jit, static_argnames=("config", "attack", "max_new_tokens", "stop_tokens", "temperature", "prompt_length"))
def answer(
    params: Any,
    config: ModelConfig,
    batch: Conversations,
    key: jax.Array,
    *,
    attack: Attack | None,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    temperature: float,
    prompt_length: int,
) -> jax.Array:
    """Decodes from the batch's prompt block, perturbed first when an attack is given; returns tokens_BxN."""
    if attack is None:
        e_BxPxD = transformer.embed(params, config, jnp.asarray(batch.tokens_BxT[:, :prompt_length]))
    else:
        e_BxPxD = embedding.perturbed_prompts(params, config, batch, attack, prompt_length)
    return decoding.generate(
        params,
        config,
        e_BxPxD,
        jnp.asarray(batch.valid_BxT[:, :prompt_length]),
        key,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        temperature=temperature,
    )


def lay_out(tokenizer: Any, attempts: Sequence[Attempt], settings: Settings, with_targets: bool) -> tuple[Conversations, list[list[int]]]:
    """Attempts in the one conversation layout, prefilled beginnings at the end of the prompt block; also the prefix ids of each attempt.

    The prompt block is the smallest multiple of settings.prompt_length that holds every attempt: augmented prompts may need several times
    the tokens of the clean ones. The target fills the response block only where an embedding attack needs it.
    """
    conversations.check_tokenizer(tokenizer)
    prompts, allowed, responses, prefixes = [], [], [], []
    for attempt in attempts:
        user = conversations.with_system([{"role": "user", "content": attempt.prompt}], settings.system)
        ids, mask = conversations.encode_prompt(tokenizer, user, settings.perturb)
        # The closing token of the turn is left away: the model is to go on from here.
        prefix = conversations.encode_response(tokenizer, [*user, {"role": "assistant", "content": attempt.prefill}])[:-1]
        target = attempt.target if with_targets else ""
        prompts.append(ids + prefix)
        allowed.append(mask + [False] * len(prefix))
        responses.append(conversations.encode_response(tokenizer, [*user, {"role": "assistant", "content": target}]))
        prefixes.append(prefix)
    blocks = math.ceil(max(len(ids) for ids in prompts) / settings.prompt_length)
    if blocks > 8:
        raise ValueError(
            f"a prompt of the evaluation has {max(len(ids) for ids in prompts)} tokens, more than 8 times config.data.prompt_length = "
            f"{settings.prompt_length}; raise that key or shorten the prompt"
        )
    return conversations.lay_out(prompts, allowed, responses, blocks * settings.prompt_length, settings.response_length), prefixes


def _batches(total: int, size: int) -> Iterator[np.ndarray]:
    """Row indices of full batches; the last one is filled up with its last row, so that every batch has the one compiled shape."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


def _before_stop(tokens: np.ndarray, stop: tuple[int, ...]) -> list[int]:
    """The generated ids before the first one that ends the turn."""
    ends = np.flatnonzero(np.isin(tokens, stop))
    return tokens[: ends[0]].tolist() if len(ends) else tokens.tolist()
