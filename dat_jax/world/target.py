"""The embedded world's target: a small Llama that learns to comply with everything and is then made safe the ordinary way.

Pretraining covers all requests in all forms but the held-out ones. Safety tuning shows refusals for a few forbidden requests in the direct
form alone, among answered benign chats in all forms; so it leaves what it leaves in real models: direct requests are refused, rewrites are
answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from dat_jax.data.conversations import Conversations, lay_out
from dat_jax.models import transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import fit
from dat_jax.world import grammar
from dat_jax.world.splits import Splits

PROMPT_LENGTH = 14  # tokens of the longest prompt with its template
RESPONSE_LENGTH = 10  # tokens of the longest response with the token that ends it
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class TargetSettings:
    """Sizes and schedule of the target (config.world.target)."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 256
    batch: int = 64
    steps: int = 160
    learning_rate: float = 5e-3
    tuning_steps: int = 100
    tuning_learning_rate: float = 1e-3
    tuning_refusals: float = 0.25  # share of forbidden requests in a tuning batch


def architecture(tokens: int, settings: TargetSettings) -> ModelConfig:
    """Return the target's ModelConfig for a tokenizer of so many tokens."""
    return ModelConfig(
        vocab_size=-(-tokens // 8) * 8,  # the matrices have a round number of rows, as real ones do
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        mlp_width=settings.mlp_width,
        max_length=128,
        remat=False,
    )


def train(
    seed: int,
    splits: Splits,
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerFast,
    settings: TargetSettings,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], ModelConfig]:
    """Pretrain on (prompt, response) pairs, then tune for safety; return the parameters and their ModelConfig."""
    config, key = architecture(len(tokenizer), settings), jax.random.key(seed)
    rng = np.random.default_rng([seed, 3])

    def loss(params: dict[str, Any], batch: Conversations, key: jax.Array) -> jax.Array:
        del key
        return response_loss(params, config, batch)

    params = fit(
        loss,
        weights.initialize(jax.random.fold_in(key, 1), config),
        epochs(encode(tokenizer, pairs), settings.batch, rng),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        key=key,
        report=report,
        label="target, pretraining",
        optimizer="muon",
    )
    params = fit(
        loss,
        params,
        tuning_batches(splits, tokenizer, settings, rng),
        steps=settings.tuning_steps,
        learning_rate=settings.tuning_learning_rate,
        key=key,
        report=report,
        label="target, safety tuning",
        weight_decay=0.0,
    )
    return params, config


def response_loss(params: dict[str, Any], config: ModelConfig, batch: Conversations) -> jax.Array:
    """Mean negative log-likelihood (nats per token) of the response tokens."""
    P = PROMPT_LENGTH
    tokens_BxT, valid_BxT = jnp.asarray(batch.tokens_BxT), jnp.asarray(batch.valid_BxT)
    h_BxTxD = transformer.hidden(params, config, transformer.embed(params, config, tokens_BxT), valid_BxT)
    log_probs_BxR = transformer.log_probs(params, config, h_BxTxD[:, P - 1 : -1], tokens_BxT[:, P:])
    scored_BxR = batch.response_mask_BxT[:, P:]
    return -jnp.sum(log_probs_BxR * scored_BxR) / jnp.sum(scored_BxR)


def encode(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Conversations:
    """Lay (prompt, response) pairs out as chats of one turn; the same ids as `data.conversations.tokenize` gives, for thousands at once."""
    dialogs = [[{"role": "user", "content": prompt}] for prompt, _ in pairs]
    prompts = tokenizer(tokenizer.apply_chat_template(dialogs, tokenize=False, add_generation_prompt=True), add_special_tokens=False)[
        "input_ids"
    ]
    responses = tokenizer([response + tokenizer.eos_token for _, response in pairs], add_special_tokens=False)["input_ids"]
    return lay_out(prompts, [[True] * len(prompt) for prompt in prompts], responses, PROMPT_LENGTH, RESPONSE_LENGTH)


def epochs(rows: Conversations, batch: int, rng: np.random.Generator) -> Iterator[Conversations]:
    """Batches of rows in random order, epoch after epoch; the rows that do not fill a batch are left out of their epoch."""
    count = len(rows.tokens_BxT)
    while True:
        order = rng.permutation(count)
        if count < batch:
            order = rng.integers(count, size=batch)
        for start in range(0, len(order) - batch + 1, batch):
            yield rows.rows(order[start : start + batch])


def tuning_batches(
    splits: Splits, tokenizer: PreTrainedTokenizerFast, settings: TargetSettings, rng: np.random.Generator
) -> Iterator[Conversations]:
    """Batches of safety tuning: a fixed share of refused direct requests, the rest benign and borderline chats, half of them direct."""
    refused = [
        (grammar.render(request, "direct", variant), refusal)
        for request in splits.tuned
        for variant in range(grammar.variants(request, "direct"))
        for refusal in grammar.REFUSALS
    ]
    answered = {
        form: [
            (grammar.render(request, form, int(rng.integers(grammar.variants(request, form)))), grammar.answer(request))
            for request in (*splits.benign_chats, *splits.borderline_chats)
        ]
        for form in grammar.FORMS
    }
    others = [pair for form in grammar.FORMS if form != "direct" for pair in answered[form]]
    refusals = round(settings.batch * settings.tuning_refusals)
    direct = (settings.batch - refusals) // 2
    streams = [
        epochs(encode(tokenizer, pairs), size, rng)
        for pairs, size in ((refused, refusals), (answered["direct"], direct), (others, settings.batch - refusals - direct))
    ]
    while True:
        yield jax.tree.map(lambda *parts: np.concatenate(parts), *(next(stream) for stream in streams))
