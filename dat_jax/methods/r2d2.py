"""R2D2 (HarmBench, arXiv 2402.04249): away, toward and utility loss on requests with suffixes that GCG goes on improving all the while.

A pool holds a suffix for each behavior. Every step improves those of its rows by a few steps of GCG against the model as it is then, puts
them back, and trains on the rows with them. A share of the pool starts anew every so often. The pool is part of the train state.

    L = away_weight * mean -log(1 - p(harmful | x, suffix)) + toward_weight * NLL(refusal | x, suffix) + utility_weight * NLL(benign chat)

Reference: `adversarial_training/` of HarmBench, whose numbers are the defaults. What differs from it, and why:

* A suffix starts as tokens drawn at random, and not as exclamation marks: no tokenizer must have those.
* All suffixes have one length. The reference means to draw 15 to 20 and, seeding anew in each loop, draws the same.
* A candidate must lower the loss, or the suffix stays.
* Here as there, tokens are trained on that text may not spell. The attack `gcg` of the evaluation searches for text alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data.conversations import Conversations
from dat_jax.data.pipeline import Batch
from dat_jax.methods import cat
from dat_jax.methods.method import Method, StepShape, Term
from dat_jax.models import flops
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.settings import check
from dat_jax.training.losses import Objective, away_loss, cross_entropy, toward_loss
from dat_jax.training.network import Found, Network, embed, kl, nll, response_hidden, response_nll
from dat_jax.training.suffixes import admissible, behind, favored, objective

Memory = dict[str, jax.Array]  # suffix_NxS: the pool; allowed_A: tokens that may be drawn; updates: of the pool so far
OBJECTIVE = Objective(away="log_1_minus_p", toward_cutoff=0.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.methods.r2d2."""

    pool: int = 180  # suffixes; where there are more behaviors, some share one
    tokens: int = 20  # of a suffix
    steps: int = 5  # of GCG before each update, on the suffixes of its rows
    candidates: int = 512  # of each suffix in a step; the suffix as it was is one of them
    topk: int = 256  # tokens per place that candidates are drawn from
    batch_size: int = 64  # candidates of each suffix evaluated at a time; a divisor of `candidates`
    reset_every: int = 50  # updates (with training.micro_batch parts of one) between two times that a share of the pool starts anew
    reset_share: float = 0.2
    ascii_only: bool = True  # whether only tokens of printable ASCII are drawn
    objective: Objective = dataclasses.field(default_factory=lambda: OBJECTIVE)

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        counts = ("pool", "tokens", "steps", "candidates", "topk", "batch_size", "reset_every")
        rules = {name: (getattr(self, name) >= 1, "an integer >= 1") for name in counts}
        check(self, key, rules | {"reset_share": (0 <= self.reset_share <= 1, "a share, 0 to 1")})
        divides = self.candidates % self.batch_size == 0
        check(self, key, {"batch_size": (divides, f"a divisor of candidates = {self.candidates}")})


def memory(settings: Settings, model: Model, seed: int) -> Memory:
    """Returns the pool before the first step. ValueError where the tokenizer has no token that may be drawn."""
    if model.tokenizer is None:  # programs are compiled without one, and then any token is as good as another
        allowed_A = np.arange(model.config.vocab_size)
    else:
        allowed_A = np.flatnonzero(admissible(model, settings.ascii_only, "methods.r2d2.ascii_only"))
    suffix_NxS = np.random.default_rng(seed).choice(allowed_A, (settings.pool, settings.tokens))
    arrays = {"suffix_NxS": suffix_NxS, "allowed_A": allowed_A, "updates": np.zeros(())}
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def inner(network: Network, batch: Batch, key: jax.Array, settings: Settings) -> Found:
    """Improves the suffixes of the batch's behaviors, and puts them back into the pool."""
    of_reset, of_search = jax.random.split(key)
    pool = reset(network.memory, of_reset, settings)
    slot_B = batch.behavior_B % settings.pool
    suffix_BxS, before_B, after_B = search(network, batch.away, pool["suffix_NxS"][slot_B], of_search, pool["allowed_A"], settings)
    after = pool | {"suffix_NxS": put(pool["suffix_NxS"], slot_B, suffix_BxS), "updates": pool["updates"] + 1}
    metrics = {"attack/loss": jnp.mean(after_B)}
    return Found(delta={}, nll_before_B=before_B, metrics=metrics, suffix_BxS=suffix_BxS, memory=after)


def reset(pool: Memory, key: jax.Array, settings: Settings) -> Memory:
    """Returns the pool, with a share of its suffixes drawn anew where that is due."""
    (N, S), (A,) = pool["suffix_NxS"].shape, pool["allowed_A"].shape
    of_choice, of_tokens = jax.random.split(key)
    due = (pool["updates"] > 0) & (pool["updates"] % settings.reset_every == 0)
    chosen_N = due & (jax.random.permutation(of_choice, N) < round(settings.reset_share * N))
    fresh_NxS = pool["allowed_A"][jax.random.randint(of_tokens, (N, S), 0, A)]
    return pool | {"suffix_NxS": jnp.where(chosen_N[:, None], fresh_NxS, pool["suffix_NxS"])}


def put(pool_NxS: jax.Array, slot_B: jax.Array, suffix_BxS: jax.Array) -> jax.Array:
    """Returns the pool with these suffixes in their places; of two for one place the later counts, on every device."""
    later_BxB = jnp.triu(slot_B[:, None] == slot_B[None], 1)
    place_B = jnp.where(jnp.any(later_BxB, axis=1), len(pool_NxS), slot_B)
    return pool_NxS.at[place_B].set(suffix_BxS, mode="drop")


def search(
    network: Network, rows: Conversations, suffix_BxS: jax.Array, key: jax.Array, allowed_A: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes GCG's steps; returns the suffixes and the loss of each row before and after them, nats per token of the response."""
    (B, S), C = suffix_BxS.shape, settings.candidates
    allowed_V = jnp.zeros(network.config.vocab_size, bool).at[allowed_A].set(True)

    def losses(suffix_cxBxS: jax.Array) -> jax.Array:
        many = jax.tree.map(lambda x: jnp.tile(x, (len(suffix_cxBxS), 1)), rows)
        longer, made, _ = behind(network, many, suffix_cxBxS.reshape(-1, S))
        return objective(longer, made, None, 0.0).reshape(-1, B)

    def step(suffix_BxS: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        longer, made, columns_BxS = behind(network, rows, suffix_BxS)
        count = min(settings.topk, len(allowed_A))
        favored_BxSxK = favored(longer, made, None, 0.0, columns_BxS, allowed_V, count)
        of_place, of_token = jax.random.split(key)
        place_CxB, number_CxB = jax.random.randint(of_place, (C, B), 0, S), jax.random.randint(of_token, (C, B), 0, count)
        row_CxB = jnp.broadcast_to(jnp.arange(B)[None], (C, B))
        other_CxBx1 = favored_BxSxK[row_CxB, place_CxB, number_CxB][..., None]
        changed_CxBxS = (jnp.arange(S)[None, None] == place_CxB[..., None]) & (jnp.arange(C) > 0)[:, None, None]
        drawn_CxBxS = jnp.where(changed_CxBxS, other_CxBx1, suffix_BxS[None])
        loss_CxB = jax.lax.map(losses, drawn_CxBxS.reshape(-1, settings.batch_size, B, S)).reshape(C, B)
        best_B = jnp.argmin(jnp.where(jnp.isnan(loss_CxB), jnp.inf, loss_CxB), axis=0)
        return drawn_CxBxS[best_B, jnp.arange(B)], (loss_CxB[0], loss_CxB[best_B, jnp.arange(B)])

    suffix_BxS, (before_KxB, after_KxB) = jax.lax.scan(step, suffix_BxS, jax.random.split(key, settings.steps))
    return suffix_BxS, before_KxB[0], after_KxB[-1]


def loss(
    network: Network, reference: Network | None, batch: Batch, found: Found, key: jax.Array, settings: Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the objective and its terms. reference: the model before training, where the utility loss is the divergence from it."""
    del key
    how, A = settings.objective, len(batch.away.tokens_BxT)
    pairs, suffix_BxS = jax.tree.map(lambda *x: jnp.concatenate(x), (batch.away, found.suffix_BxS), (batch.toward, found.suffix_BxS))
    longer, rows, _ = behind(network, pairs, suffix_BxS)
    nll_BxR, mask_BxR = response_nll(longer, embed(longer, rows), rows), rows.response_mask_BxT[:, longer.prompt_length :]
    away, toward = away_loss(nll_BxR[:A], mask_BxR[:A], how), toward_loss(nll_BxR[A:], mask_BxR[A:], how)
    h_BxRxD = response_hidden(network, embed(network, batch.utility), batch.utility)
    kept_BxR = nll(network, h_BxRxD, batch.utility)
    if reference is not None:
        kept_BxR = kl(network, reference, h_BxRxD, batch.utility, reverse=how.retention == "reverse_kl")
    kept_B = cross_entropy(kept_BxR, batch.utility.response_mask_BxT[:, network.prompt_length :], pooled=how.cutoff_over == "batch")
    utility, nll_B = jnp.mean(kept_B), cross_entropy(nll_BxR, mask_BxR)
    total, metrics = cat.summed(how, away, toward, utility, nll_B[:A], nll_B[A:])
    return total, metrics | {"attack/gain": jnp.mean(found.nll_before_B) - found.metrics["attack/loss"]}


def step_flops(model: ModelConfig, settings: Settings, shape: StepShape) -> dict[str, float]:
    """Operations of a step: each step of GCG with its gradient and candidates, then the rows with suffixes and the utility rows."""
    A, R, length = shape.adversarial, shape.response, shape.prompt + shape.response
    longer = length + settings.tokens
    one_hot = 2.0 * A * settings.tokens * model.width * model.vocab_size
    gradient = flops.input_gradient(model, Pass(A, longer, R)) + one_hot
    attack = settings.steps * (gradient + flops.forward(model, Pass(A * settings.candidates, longer, R)))
    found = flops.train_step(model, attack, Pass(2 * A, longer, R), shape.rank)
    benign = Pass(shape.utility, length, R)
    found["defence"] += flops.train_step(model, 0.0, benign, shape.rank)["defence"]
    if settings.objective.compares:
        found["defence"] += flops.forward(model, benign)
    return found


METHOD = Method(
    name="r2d2",
    title="R2D2",
    paper="R2D2 (HarmBench, arXiv 2402.04249)",
    prompts="requests",
    settings=Settings,
    inner=inner,
    loss=loss,
    flops=step_flops,
    memory=memory,
    suffixes=True,
    needs_reference=cat.METHOD.needs_reference,
    about=lambda settings: f"{settings.steps} steps of GCG, {settings.candidates} candidates each",
    terms=(
        *cat.LOSS_TERMS,
        Term("attack/loss", "Loss of the suffixes", "nats per token of the harmful response behind them"),
    ),
)
