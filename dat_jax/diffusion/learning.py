"""Trains a small masked-diffusion LM on (prompt, response) pairs, so that it can infill a prompt for a given response.

Loss: the bound on the negative log-likelihood per token (LLaDA, 1/t-weighted), with the masked count l stratified over the batch and the
mask of exactly l positions instead of independent ones: the same expectation at lower variance. A share of the rows masks the prompt alone,
which is the task the sampler is used for; in the others the response is never masked more than `response_limit`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data.metrics import Metrics
from dat_jax.data.plain_text import encode_text
from dat_jax.diffusion.denoiser import hidden_at, mask_id
from dat_jax.diffusion.layout import Rows, Template, pack, prompt_block
from dat_jax.diffusion.likelihood import log_likelihood
from dat_jax.diffusion.proposal import ranks
from dat_jax.diffusion.sampler import row_keys
from dat_jax.models import attention, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import Saving, fit

Params = Any
MOST_HELD_OUT = 256  # pairs


@dataclasses.dataclass(frozen=True)
class Learning:
    """Settings of `learn`."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    prompt_only: float = 0.5  # share of the rows that mask the prompt alone
    response_limit: float = 1.0  # largest share of a response that is masked in the other rows
    held_out: int = MOST_HELD_OUT  # pairs kept apart for the bound that is logged
    draws: int = 8  # Monte-Carlo draws of that bound
    chunk: int = 0  # positions the head sees at a time; 0: all
    anneal_steps: int = 0  # over which the attention mask goes from causal to full, a random share of the future at each; 0: full at once
    validate_every: int = 0  # steps between bounds on the held-out pairs, where `learn` has a folder for them; 0: none

    def __post_init__(self) -> None:
        """Rejects shares outside [0, 1], counts below 1 and a mask that is never fully open, naming the option."""
        for name in ("prompt_only", "response_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, allowed is a share from 0 to 1")
        for name in ("steps", "batch_size", "held_out", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, allowed is an integer of at least 1")
        if self.anneal_steps > self.steps:
            raise ValueError(f"anneal_steps: found {self.anneal_steps}, allowed is at most steps={self.steps}: a sampler reads all tokens")


def pair_rows(
    tokenizer: Any, template: Template, pairs: Sequence[tuple[str, str]], prompt_tokens: int, response_length: int
) -> tuple[Rows, int]:
    """Rows of the pairs whose prompts have 1 to `prompt_tokens` tokens, and the number of pairs left out; responses are cut."""
    prompts = [encode_text(tokenizer, prompt) for prompt, _ in pairs]
    kept = [index for index, prompt in enumerate(prompts) if 0 < len(prompt) <= prompt_tokens]
    responses = [encode_text(tokenizer, pairs[index][1]) for index in kept]
    rows = pack([prompts[index] for index in kept], responses, template, prompt_block(template, prompt_tokens), response_length)
    return rows, len(pairs) - len(kept)


def take(rows: Rows, index: Any) -> Rows:
    """The rows of the given indices."""
    return jax.tree.map(lambda x: x[index], rows)


def batches(rows: Rows, batch_size: int, seed: int) -> Iterator[Rows]:
    """Endless batches: every epoch in a new order, the rest of an epoch shorter than a batch is left out."""
    count = len(rows.tokens_BxT)
    if count < batch_size:
        raise ValueError(f"batch_size: found {batch_size}, there are only {count} pairs to train on")
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            yield take(rows, order[start : start + batch_size])
        epoch += 1


def draw_mask(rows: Rows, key: jax.Array, prompt_only: float, response_limit: float) -> tuple[jax.Array, jax.Array]:
    """The positions to mask (B, T) and each row's count l (B,), uniform on 1 .. L and spread evenly over the batch."""
    count = rows.tokens_BxT.shape[0]
    role_key, start_key, stratum_key, score_key = jax.random.split(key, 4)
    prompt_BxT, response_BxT = jnp.asarray(rows.prompt_mask_BxT), jnp.asarray(rows.response_mask_BxT)
    prompt_only_B = jax.random.permutation(role_key, jnp.arange(count) < round(prompt_only * count))
    target_BxT = prompt_BxT | (response_BxT & ~prompt_only_B[:, None])
    length_B = jnp.sum(target_BxT, axis=1)
    # Row j takes the j-th stratum; the strata start at one shared random time and are dealt to the rows in random order.
    time_B = jnp.mod(jax.random.uniform(start_key) + jax.random.permutation(stratum_key, jnp.arange(count)) / count, 1.0)
    count_B = jnp.minimum(1 + jnp.floor(time_B * length_B).astype(jnp.int32), length_B)
    score_BxT = jax.random.uniform(score_key, target_BxT.shape)
    mask_BxT = target_BxT & (ranks(score_BxT, target_BxT) < count_B[:, None])
    allowed_B = jnp.floor(response_limit * jnp.sum(response_BxT, axis=1))
    within_BxT = ranks(score_BxT, response_BxT & mask_BxT) < allowed_B[:, None]
    return mask_BxT & (prompt_BxT | within_BxT), count_B


def masked_loss(params: Params, config: ModelConfig, rows: Rows, key: jax.Array, prompt_only: float = 0.5, response_limit: float = 1.0,
                chunk: int = 0, open_TxT: jax.Array | None = None) -> jax.Array:  # fmt: skip
    """Mean over rows of (1/L)(L/l) sum of -log p(masked token | the others): nats per token, an unbiased estimate of the bound."""
    mask_BxT, count_B = draw_mask(rows, key, prompt_only, response_limit)
    noisy_BxT = jnp.where(mask_BxT, mask_id(config), rows.tokens_BxT)
    h_BxTxD = hidden_at(params, config, noisy_BxT, jnp.asarray(rows.valid_BxT), None, open_TxT)
    log_prob_BxT = transformer.log_probs(params, config, h_BxTxD, jnp.asarray(rows.tokens_BxT), chunk)
    return -jnp.mean(jnp.sum(jnp.where(mask_BxT, log_prob_BxT, 0.0), axis=1) / jnp.maximum(count_B, 1))


def held_out_bound(params: Params, config: ModelConfig, rows: Rows, draws: int, batch_size: int, chunk: int = 0) -> dict[str, float]:
    """Bounds in nats per token on held-out rows: of the prompt given the response and of the response given the prompt."""
    result = {}
    for name, target in (("prompt_given_response", rows.prompt_mask_BxT), ("response_given_prompt", rows.response_mask_BxT)):
        total = 0.0
        for start in range(0, len(target), batch_size):
            # The last batch starts earlier instead of being shorter: one compilation; its repeated rows are not counted.
            first = max(0, min(start, len(target) - batch_size))
            index = slice(first, first + batch_size)
            keys = row_keys(jax.random.key(0), jnp.arange(first, first + len(target[index])))
            part = log_likelihood(
                params, config, jnp.asarray(rows.tokens_BxT[index]), jnp.asarray(target[index]), jnp.asarray(rows.valid_BxT[index]), keys,
                draws, chunk=chunk,
            )  # fmt: skip
            total += float(jnp.sum(part[start - first :]))
        result[name] = total / float(target.sum())
    return result


def split(rows: Rows, wanted: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on, and at most `wanted` of them (a fifth at most) held out, with all the prompts of a response on one side.

    Where every response has more pairs than that, any pairs are held out. Raises ValueError when there are too few pairs.
    """
    count = len(rows.tokens_BxT)
    wanted = min(wanted, count // 5)
    if not wanted:
        raise ValueError(f"found {count} usable pairs, at least 5 are needed")
    responses = np.where(rows.response_mask_BxT, rows.tokens_BxT, -1)
    _, group_B = np.unique(responses, axis=0, return_inverse=True)
    group_B = group_B.reshape(-1)
    sizes, room = np.bincount(group_B), wanted
    chosen: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[group] <= room:
            chosen.append(int(group))
            room -= int(sizes[group])
    order = np.random.default_rng(seed).permutation(count)
    apart = np.isin(group_B[order], chosen) if chosen else np.arange(count) < wanted
    return take(rows, order[~apart]), take(rows, order[apart])


def check(rows: Rows, settings: Learning, seed: int, apart: Rows | None = None) -> None:
    """Raises ValueError where `learn` would: too few pairs to hold some out and fill a batch."""
    next(batches(rows if apart else split(rows, settings.held_out, seed)[0], settings.batch_size, seed))


def with_openness(stream: Iterator[Rows], anneal_steps: int) -> Iterator[tuple[Rows, np.float32]]:
    """Each batch with the share of the future that its step opens: 1 / anneal_steps at the first, 1 from step `anneal_steps` on."""
    for number, rows in enumerate(stream, 1):
        yield rows, np.float32(min(1.0, number / max(1, anneal_steps)))


def learn(params: Params, config: ModelConfig, rows: Rows, settings: Learning, key: jax.Array, seed: int,
             report: Callable[[str], None], saving: Saving | None = None, folder: Any = None, frozen: Any = None,
             join: Callable[[Params, Any], Params] = lambda params, frozen: params,
             apart: Rows | None = None) -> tuple[Params, dict[str, Any]]:  # fmt: skip
    """Trains on all but the held-out rows (see `split`); returns what was trained and the held-out bounds before and after.

    apart: rows of others that the bounds are of; then all of `rows` are trained on.

    saving: see `models.fitting.fit`. folder: of metrics.jsonl and events, where `settings.validate_every` asks for them.
    join(params, frozen): the model's weights, where what is trained is not all of them.
    """
    mask_id(config)
    kept, apart = (rows, apart) if apart else split(rows, settings.held_out, seed)
    measures: list[Metrics] = []
    bounds_by_step: dict[int, dict[str, float]] = {}

    def loss(params: Params, batch: tuple[Rows, jax.Array], key: jax.Array, frozen: Any) -> jax.Array:
        some, share = batch
        opened = attention.partly_open(jax.random.fold_in(key, 1), some.tokens_BxT.shape[1], share) if settings.anneal_steps else None
        joined = join(params, frozen)
        return masked_loss(joined, config, some, key, settings.prompt_only, settings.response_limit, settings.chunk, opened)

    def bound(params: Params) -> dict[str, float]:
        batch_size = min(settings.batch_size, len(apart.tokens_BxT))
        return held_out_bound(join(params, frozen), config, apart, settings.draws, batch_size, settings.chunk)

    def watch(number: int, params: Params, value: jax.Array) -> None:
        measures[:] = measures or [Metrics(folder, number - 1)]
        found: dict[str, float] = {"loss": float(value)}
        if number % settings.validate_every == 0 or number == settings.steps:
            bounds = bounds_by_step[number] = bound(params)
            report(f"sampler: step {number}  held-out bound " + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in bounds.items()))
            found |= {f"bound/{name}": value for name, value in bounds.items()}
        measures[0].write(number, found)
        if saving and (number % saving.every == 0 or number == settings.steps):
            measures[0].flush()  # no state is saved before the numbers of its steps are

    stream = with_openness(batches(kept, settings.batch_size, seed), settings.anneal_steps)
    before = bound(params)
    params = fit(
        loss, params, stream, steps=settings.steps, learning_rate=settings.learning_rate, key=key, report=report, label="sampler",
        saving=saving, constants=(frozen,), watch=watch if settings.validate_every and folder is not None else None,
    )  # fmt: skip
    for measure in measures:
        measure.close()
    after = bounds_by_step.get(settings.steps) or bound(params)  # its draws are always the same
    for name in after:
        report(f"sampler: held-out bound {name.replace('_', ' ')} {before[name]:.3f} -> {after[name]:.3f} nats per token")
    return params, {"before": before, "after": after, "rows": len(rows.tokens_BxT), "held_out": len(apart.tokens_BxT)}
