"""Adapts a masked-diffusion LM to a target: of its own prompts, those that broke the target are preferred to those that did not.

For a response y, a preferred prompt x+ and a rejected one x- the loss is that of DPO (arXiv 2305.18290, eq. 7), with bounds in place of
likelihoods (LLaDA 1.5, arXiv 2505.19223):

    -log sigmoid(beta * [(B(x+ | y) - B_ref(x+ | y)) - (B(x- | y) - B_ref(x- | y))])

B is the Monte-Carlo bound of `likelihood.py`, in nats for the whole prompt; ref is the sampler as it was loaded. Both models see the same
masks. What is trained are LoRA factors, so the reference needs no memory of its own.
Files: pairs.jsonl, factors.safetensors, and last adapted.json, which stands for both.
B pairs, T positions.
"""

import dataclasses
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from safetensors import numpy as safetensors

from dat_jax import sharding
from dat_jax.data import files, manifest, provenance
from dat_jax.data.plain_text import encode_text
from dat_jax.diffusion import selection
from dat_jax.diffusion.layout import Rows, pack, prompt_block, template
from dat_jax.diffusion.learning import take
from dat_jax.diffusion.likelihood import log_likelihood
from dat_jax.diffusion.pool import Pool, padded_block
from dat_jax.diffusion.sampler import row_keys
from dat_jax.models import flops, lora
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.models.lora import Lora
from dat_jax.settings import check

Params = Any
FOLDER = "adapted"  # of a round, and below it:
MARKER, PAIRS, FACTORS = "adapted.json", "pairs.jsonl", "factors.safetensors"
REMEDY = "put it back as it was, or delete its folder to adapt the sampler again"
ALPHA = 2  # of LoRA, times the rank


@dataclasses.dataclass(frozen=True)
class Preference:
    """How a sampler is adapted (`config.sampler.preference` for re-sampled rounds, `config.attacks.infilling_adapted.preference`)."""

    steps: int = 0  # updates; 0: the sampler stays as it is
    learning_rate: float = 1e-4  # peak, of Adam on the factors
    beta: float = 0.25  # how far the sampler may move from where it was: the less, the further
    draws: int = 4  # Monte-Carlo draws of each bound
    pairs: int = 8  # per behavior at most
    batch_size: int = 16  # pairs per update
    rank: int = 8  # of the LoRA factors

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {"steps": (self.steps >= 0, "an integer >= 0 (0: the sampler stays as it is)")}
        rules |= {name: (getattr(self, name) > 0, "a number > 0") for name in ("learning_rate", "beta")}
        rules |= {name: (getattr(self, name) >= 1, "an integer >= 1") for name in ("draws", "pairs", "batch_size", "rank")}
        check(self, key, rules)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts that were drawn for one response of a behavior: the first one broke the target, the second did not."""

    behavior_id: str
    response: str
    preferred: str
    rejected: str


def pairs_of(tried: Iterable[tuple[str, str, str, bool]], most: int, seed: int, round: int) -> list[Pair]:
    """Returns at most `most` pairs per behavior, each prompt in about as many as any other; no pair where one of the kinds is missing.

    tried: of (behavior's id, response, prompt drawn for it, whether the prompt broke the target).
    """
    groups: dict[str, dict[str, tuple[list[str], list[str]]]] = {}
    for behavior, response, prompt, broke in tried:
        groups.setdefault(behavior, {}).setdefault(response, ([], []))[0 if broke else 1].append(prompt)
    found = []
    for behavior, responses in groups.items():
        rng, own = np.random.default_rng((seed, round, zlib.crc32(behavior.encode()), 2)), []
        for response, kinds in responses.items():
            preferred, rejected = ([texts[i] for i in rng.permutation(selection.unique(texts))] for texts in kinds)
            if preferred and rejected:
                cycles = zip(itertools.cycle(preferred), itertools.cycle(rejected))
                own += [Pair(behavior, response, *two) for two in itertools.islice(cycles, max(len(preferred), len(rejected)))]
        found += [own[i] for i in rng.permutation(len(own))[:most]]
    return found


def pair_rows(pool: Pool, sampler: Model, pairs: Sequence[Pair]) -> Rows:
    """Token rows (pairs, 2, T), the preferred prompt first; pairs with a prompt that the pool could not have drawn are left out.

    Such a prompt has no token, or more than the longest prompt: its text is cut into other tokens than those that were drawn.
    """
    around, encode = template(sampler.tokenizer, pool.separator, pool.begin), partial(encode_text, sampler.tokenizer)
    encoded = [([encode(pair.preferred), encode(pair.rejected)], encode(pair.response)) for pair in pairs]
    fit = [(two, response) for two, response in encoded if all(0 < len(prompt) <= pool.prompt_tokens[1] for prompt in two)]
    prompts, responses = [prompt for two, _ in fit for prompt in two], [response for _, response in fit for _ in range(2)]
    rows = pack(prompts, responses, around, block_of(pool, sampler), pool.response_tokens)
    return jax.tree.map(lambda x: x.reshape(len(fit), 2, x.shape[1]), rows)


def block_of(pool: Pool, sampler: Model) -> int:
    """The length of the prompt's block in a row."""
    around = template(sampler.tokenizer, pool.separator, pool.begin)
    return padded_block(pool, prompt_block(around, pool.prompt_tokens[1]), sampler.config)


def preference_loss(
    params: Params, reference: Params, config: ModelConfig, rows: Rows, keys_B: jax.Array, beta: float, draws: int, span: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss of pairs (B, 2, T), and for each by how many nats the model prefers x+ more than the reference does (B,).

    Both models, and both prompts of a pair, get the pair's key, and so the same masks. span: see `likelihood.masked_log_prob`.
    """
    tokens, mask, valid = (jnp.asarray(x).reshape(-1, x.shape[-1]) for x in (rows.tokens_BxT, rows.prompt_mask_BxT, rows.valid_BxT))
    bound = partial(log_likelihood, config=config, tokens_BxT=tokens, target_mask_BxT=mask, valid_BxT=valid, draws=draws, span=span)
    keys = jnp.repeat(keys_B, 2)
    gain_Bx2 = (bound(params, keys_B=keys) - jax.lax.stop_gradient(bound(reference, keys_B=keys))).reshape(-1, 2)
    margin_B = gain_Bx2[:, 0] - gain_Bx2[:, 1]
    return -jnp.mean(jax.nn.log_sigmoid(beta * margin_B)), margin_B


def optimizer(settings: Preference) -> optax.GradientTransformation:
    """Adam without weight decay, which would pull the product of the factors to zero; a short warm-up, then a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, max(1, settings.steps // 20), settings.steps + 1)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@partial(jax.jit, static_argnames=("config", "settings", "span"), donate_argnames=("factors", "state"))
def update(
    factors: Lora, state: optax.OptState, params: Params, config: ModelConfig, rows: Rows, key: jax.Array, settings: Preference, span: int
) -> tuple[Lora, optax.OptState, jax.Array, jax.Array]:
    """One update of the factors; returns also the loss and the margins (B,) before it."""

    def loss(factors: Lora) -> tuple[jax.Array, jax.Array]:
        keys_B = row_keys(key, jnp.arange(rows.tokens_BxT.shape[0]))
        return preference_loss(lora.merge(params, factors), params, config, rows, keys_B, settings.beta, settings.draws, span)

    (value, margin_B), gradient = jax.value_and_grad(loss, has_aux=True)(factors)
    updates, state = optimizer(settings).update(gradient, state, factors)  # type: ignore[arg-type]
    return optax.apply_updates(factors, updates), state, value, margin_B  # type: ignore[arg-type, return-value]


def batches(rows: Rows, size: int, seed: tuple[int, ...]) -> Iterator[Rows]:
    """Endless batches of always `size` pairs: every epoch in an order of its own, one epoch after the other without a gap."""
    rng, count, queue = np.random.default_rng(seed), len(rows.tokens_BxT), np.zeros(0, np.int64)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield take(rows, queue[:size])
        queue = queue[size:]


def adapt(
    pool: Pool, sampler: Model, pairs: Sequence[Pair], settings: Preference, seed: tuple[int, ...], report: Callable[[str], None]
) -> Lora | None:
    """Returns the factors that a sampler's weights get from these pairs, or None where no pair can be learned from.

    The same pairs, settings and seed (numbers >= 0) give the same factors. Raises ValueError when the loss is not finite.
    """
    rows, started = pair_rows(pool, sampler, pairs), time.monotonic()
    if not len(rows.tokens_BxT) or not settings.steps:
        return None
    key = jax.random.key(zlib.crc32(repr(seed).encode()))
    mesh = jax.sharding.get_mesh()  # of jax.set_mesh: every device has the factors whole, which are small
    whole = None if mesh.empty else sharding.replicated(mesh)
    factors = jax.device_put(lora.initialize(key, sampler.config, settings.rank, ALPHA * settings.rank), whole)
    state = jax.jit(optimizer(settings).init, out_shardings=whole)(factors)
    stream, every = batches(rows, settings.batch_size, seed), max(1, settings.steps // 4)
    for number in range(1, settings.steps + 1):
        factors, state, value, margin_B = update(
            factors, state, sampler.params, sampler.config, next(stream), jax.random.fold_in(key, number), settings, pool.prompt_tokens[1]
        )
        if number % every == 0 or number == settings.steps:
            if not np.isfinite(loss := float(sharding.on_host(value))):
                raise ValueError(
                    f"the sampler's preference loss is {loss} at step {number}; allowed: a finite one; lower preference.learning_rate "
                    f"({settings.learning_rate})"
                )
            prefers, pace = float(np.mean(sharding.on_host(margin_B) > 0)), (time.monotonic() - started) / number
            left = pace * (settings.steps - number)
            report(f"sampler, adapted: step {number}/{settings.steps}  loss {loss:.3f}  {prefers:.0%} of pairs  {left:.0f} s left")
    return factors


def adapted(sampler: Model, factors: Lora | None) -> Model:
    """Returns the sampler with the factors merged into its weights; None: as it is."""
    return sampler if factors is None else dataclasses.replace(sampler, params=lora.merge(sampler.params, factors))


def operations(pool: Pool, sampler: Model, settings: Preference) -> float:
    """Operations of all updates, by formula: per draw a forward of the reference, and forward and backward of the adapted model."""
    shape = Pass(2 * settings.batch_size, block_of(pool, sampler) + pool.response_tokens, pool.prompt_tokens[1])
    of_draw = flops.forward(sampler.config, shape) + flops.input_gradient(sampler.config, shape)
    of_draw += flops.adapters(sampler.config, shape, settings.rank)
    return settings.steps * (settings.draws * of_draw + flops.merging(sampler.config, settings.rank))


def write(folder: epath.Path, made_with: dict[str, Any], pairs: Sequence[Pair], factors: Lora | None, cost: dict[str, float]) -> None:
    """Writes what a sampler was adapted on, the factors and the cost, its marker last; every process must call."""
    arrays = {} if factors is None else {f"{n}.{part}": x for n, two in factors.factors.items() for part, x in two.items()}
    on_host = {name: np.ascontiguousarray(sharding.on_host(x)) for name, x in arrays.items()}  # every process takes part
    if jax.process_index() == 0:
        entries = {PAIRS: manifest.write_rows(folder / PAIRS, map(dataclasses.asdict, pairs))}
        if factors is not None:
            files.write_bytes(folder / FACTORS, safetensors.save(on_host))
            entries[FACTORS] = manifest.of_file(folder / FACTORS)
        scale = None if factors is None else factors.scale
        manifest.write(folder / MARKER, {"made_with": made_with, "scale": scale, "pairs": len(pairs), "cost": cost}, entries)
    multihost_utils.sync_global_devices(f"adapted {folder.parent.name}")


def read(folder: epath.Path, made_with: dict[str, Any]) -> tuple[bool, Lora | None]:
    """Returns whether a sampler was adapted here, and its factors; every process must call.

    Raises ValueError where it was adapted on something else, naming the key, or a file was damaged.
    """
    if not sharding.agreed((folder / MARKER).exists()):
        return False, None
    found = manifest.check(folder / MARKER, REMEDY)
    provenance.compare(folder / MARKER, found.content["made_with"], made_with, REMEDY)
    if FACTORS not in found.entries:
        return True, None
    factors: dict[str, dict[str, Any]] = {}
    for name, array in safetensors.load((folder / FACTORS).read_bytes()).items():
        factors.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = array
    return True, Lora(factors=factors, scale=found.content["scale"])


def cost_of(folder: epath.Path) -> dict[str, float]:
    """Returns what an adaptation cost that was written to a folder; {} where there is none."""
    return manifest.read(folder / MARKER)["cost"] if (folder / MARKER).exists() else {}
