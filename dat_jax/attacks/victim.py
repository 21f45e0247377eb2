"""The model under attack: it answers attempts in fixed-size padded batches with one compilation, and gives attacks its gradients."""

import collections
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax import sharding
from dat_jax.attacks.attack import Attempt
from dat_jax.data import conversations
from dat_jax.data.conversations import Conversations
from dat_jax.models import decoding, flops, splash, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.models.transformer import Delta
from dat_jax.training.network import Network, embed, example_mean, response_nll
from dat_jax.training.perturbation import Perturbation, operations, perturb, random_start

BLOCKS = 8  # a prompt may have so many times data.prompt_length tokens
RESPONSES = 8  # tokens of which a response block that is measured is a multiple


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How attempts are laid out and answered."""

    prompt_length: int  # tokens; a prompt may have 8 times as many
    response_length: int  # R, tokens of the target that a gradient attack raises
    max_new_tokens: int
    batch_size: int
    temperature: float  # 0: greedy
    perturb: str  # which prompt tokens a perturbation reaches: user | user+template | all
    system: str | None
    prompt_block: int = 0  # tokens; prompts are padded to a multiple of so many; 0: of prompt_length

    @property
    def block(self) -> int:
        """The number of tokens that the length of a batch's prompts is a multiple of."""
        return self.prompt_block or self.prompt_length

    def recorded(self) -> dict[str, Any]:
        """What an answer depends on beside the attempt and the weights; how batches are filled up and padded is not among it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("batch_size", "prompt_block")}


@dataclasses.dataclass(frozen=True)
class Victim:
    """A model with the way it is asked. Every process of a run must make the same calls, and gets all results."""

    model: Model
    decoding: Decoding
    seed: int  # of the sampling at temperature > 0; an attempt's answer depends on it, the behavior and the attempt's number alone
    mesh: jax.sharding.Mesh | None = None  # batches are spread over its data and fsdp axes
    # What the calls cost so far: answers, and operations by formula; rows that fill up a batch are not counted.
    spent: dict[str, float] = dataclasses.field(default_factory=lambda: {"answers": 0, "flops": 0.0}, compare=False, repr=False)

    def answer(
        self, attempts: Sequence[Attempt], progress: Callable[[int], None] = lambda done: None, texts: dict[int, str] | None = None
    ) -> list[str]:  # fmt: skip
        """What the model answers to each attempt, as text: a prefilled beginning once, then what was generated up to the end of the turn.

        progress: called with the number of attempts that are done, after each batch.
        texts: answers that are known, by the attempt's place; those that are given now are added batch by batch.
        Raises ValueError for a prompt of more than 8 blocks, or a batch size that the mesh does not divide.
        """
        if not attempts:
            return []
        model, stop = self.model, conversations.stop_tokens(self.model.tokenizer)
        laid_out, prefixes = lay_out(model.tokenizer, attempts, self.decoding, with_targets=False)
        P = laid_out.tokens_BxT.shape[1] - self.decoding.response_length
        self.spent["answers"] += len(attempts)
        self.spent["flops"] += flops.generate(model.config, len(attempts), P, self.decoding.max_new_tokens)
        seeds_B = attempt_seeds(attempts, self.seed)
        texts = {} if texts is None else texts
        for rows, temperature in _batches_by_temperature(attempts, self.decoding, frozenset(texts)):
            batch, seeds = self._placed((jax.tree.map(lambda array, rows=rows: array[rows], laid_out), seeds_B[rows]))
            delta = self._placed(_deltas([attempts[row] for row in rows], P))
            tokens_BxN = generate(
                model.params, model.config, batch, seeds, delta, max_new_tokens=self.decoding.max_new_tokens, stop_tokens=stop,
                temperature=temperature, prompt_length=P,
            )  # fmt: skip
            for row, tokens in zip(rows, sharding.on_host(tokens_BxN)):
                texts[int(row)] = model.tokenizer.decode(prefixes[row] + _before_stop(tokens, stop), skip_special_tokens=True).strip()
            progress(len(texts))
        return [texts[row] for row in range(len(attempts))]

    def perturb(self, attempts: Sequence[Attempt], how: Perturbation, restart: int = 0, onward: bool = False) -> list[Attempt]:
        """The attempts with the perturbation of their prompts, at the sites of `how`, that makes their targets likely; the tokens stay.

        restart: 0 starts the ascent at zero, every other number at a random point of its own.
        onward: the ascent starts where the attempts' own perturbations are, which all must have.
        Raises ValueError for a site that the model does not have.
        """
        if not attempts:
            return []
        seeds_B = attempt_seeds(attempts, self.seed)
        laid_out, _ = lay_out(self.model.tokenizer, attempts, self.decoding, with_targets=True)
        P, perturbed = laid_out.tokens_BxT.shape[1] - self.decoding.response_length, []
        self.spent["flops"] += operations(self.model.config, how, self.shape(len(attempts), P))
        kind = dataclasses.replace(how, radius=0.0, step_size=1.0)  # what a program is compiled for: all radii and step sizes share one
        for rows in _batches(len(attempts), self.decoding.batch_size):
            batch, seeds = self._placed((jax.tree.map(lambda array, rows=rows: array[rows], laid_out), seeds_B[rows]))
            begun = self._placed(_deltas([attempts[row] for row in rows], P)) if onward else None
            found = perturbation(self.model.params, self.model.config, batch, kind, P, seeds, restart, how.radius, how.step_size, begun)
            found = jax.tree.map(sharding.on_host, found)
            for place, row in enumerate(rows):
                perturbed.append(dataclasses.replace(attempts[row], delta={site: x_BxPxD[place] for site, x_BxPxD in found.items()}))
        return perturbed[: len(attempts)]

    def fits(self, prompt: str) -> bool:
        """Whether a prompt can be sent: it has no more blocks than a prompt may have, and the chat template leaves it as it is."""
        try:
            tokens = conversations.prompt_tokens(self.model.tokenizer, [{"role": "user", "content": prompt}], self.decoding.system)
        except ValueError:
            return False
        return tokens <= BLOCKS * self.decoding.prompt_length

    def log_likelihood(self, attempts: Sequence[Attempt]) -> list[float]:
        """The mean log-probability of each attempt's target behind its perturbed prompt, nats per token, the end of turn if target_eot."""
        if not attempts:
            return []
        laid_out, _ = lay_out(self.model.tokenizer, attempts, self.decoding, with_targets=True)
        P = laid_out.tokens_BxT.shape[1] - self.decoding.response_length
        laid_out = _shortened(laid_out, P, splash.BLOCK if self.model.config.attention == "splash" else 1)
        R = laid_out.tokens_BxT.shape[1] - P
        self.spent["flops"] += flops.forward(self.model.config, Pass(len(attempts), P + R, R))
        params, config = self.model.params, self.model.config
        rows = (laid_out, _deltas(attempts, P))
        return (-self.of_rows(rows, lambda batch: target_nll(params, config, batch[0], P, batch[1]), self.decoding.batch_size)).tolist()

    def shape(self, rows: int, prompt_length: int) -> Pass:
        """The shape of so many rows with a prompt block of this length, for counting operations."""
        return Pass(rows, prompt_length + self.decoding.response_length, self.decoding.response_length)

    def of_rows(self, rows: Any, compute: Callable[[Any], jax.Array], size: int) -> np.ndarray:
        """What `compute` gives for each row of a pytree of numpy arrays with rows first, `size` rows at a time, spread over the mesh.

        Raises ValueError when the mesh does not divide `size`.
        """
        total = len(jax.tree.leaves(rows)[0])
        parts = [jax.tree.map(lambda array, chosen=chosen: array[chosen], rows) for chosen in _batches(total, size)]
        return np.concatenate([sharding.on_host(compute(self._placed(part, size))) for part in parts])[:total]

    def _placed(self, batch: Any, size: int | None = None) -> Any:
        return batch if self.mesh is None else sharding.place_batch(self.mesh, batch, size or self.decoding.batch_size)


@functools.partial(jax.jit, static_argnames=("config", "kind", "prompt_length"))
def perturbation(
    params: Any, config: ModelConfig, batch: Conversations, kind: Perturbation, prompt_length: int, seeds_B: jax.Array, restart: jax.Array,
    radius: jax.Array, step_size: jax.Array, begun: Delta | None = None,
) -> Delta:  # fmt: skip
    """Finds the perturbation of the prompts, BxPxD by site, that makes the batch's responses likely; see `perturb`.

    kind: how, but for the radius and the step size. begun: where the ascent starts, in place of `restart`.
    """
    numbers: Any = {"radius": radius, "step_size": step_size}
    how, network = dataclasses.replace(kind, **numbers), Network(params, None, config, prompt_length)
    if begun is not None:
        return perturb(network, batch, how, start=begun).delta
    keys_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), restart))(seeds_B)
    anew = restart > 0
    start = {site: jnp.where(anew, x_BxPxD, 0.0) for site, x_BxPxD in random_start(network, batch, how, keys_B).items()}
    return perturb(network, batch, how, start=start).delta


@functools.partial(jax.jit, static_argnames=("config", "prompt_length"))
def target_nll(params: Any, config: ModelConfig, batch: Conversations, prompt_length: int, delta: Delta | None = None) -> jax.Array:
    """Mean negative log-likelihood of each row's response behind its perturbed prompt, nats per token, (B,)."""
    network = Network(params, None, config, prompt_length)
    return example_mean(response_nll(network, embed(network, batch), batch, delta), batch, prompt_length)


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "stop_tokens", "temperature", "prompt_length"))
def generate(
    params: Any,
    config: ModelConfig,
    batch: Conversations,
    seeds_B: jax.Array,
    delta: Delta | None,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    temperature: float,
    prompt_length: int,
) -> jax.Array:
    """Decodes from the batch's prompt block, perturbed where a perturbation is given; returns tokens_BxN."""
    return decoding.generate(
        params,
        config,
        transformer.embed(params, config, jnp.asarray(batch.tokens_BxT[:, :prompt_length])),
        jnp.asarray(batch.valid_BxT[:, :prompt_length]),
        jax.vmap(jax.random.key)(seeds_B),
        delta,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        temperature=temperature,
    )


def lay_out(tokenizer: Any, attempts: Sequence[Attempt], how: Decoding, with_targets: bool) -> tuple[Conversations, list[list[int]]]:
    """Attempts in the one conversation layout, prefilled beginnings at the end of the prompt block; also the prefix ids of each attempt.

    The prompt block is the smallest multiple of how.block that holds every attempt: augmented prompts may need several times the tokens
    of the clean ones. The target fills the response block only where a gradient attack needs it.
    """
    conversations.check_tokenizer(tokenizer)
    prompts, allowed, responses, prefixes = [], [], [], []
    for attempt in attempts:
        user = conversations.with_system([{"role": "user", "content": attempt.prompt}], how.system)
        if attempt.tokens:
            ids, mask = list(attempt.tokens), [True] * len(attempt.tokens)
        else:
            ids, mask = conversations.encode_prompt(tokenizer, user, how.perturb)
            mask = _of_suffix(tokenizer, attempt, how.system) if attempt.suffix else mask
        # The closing token of the turn is left away: the model is to go on from here.
        prefix = conversations.encode_response(tokenizer, [*user, {"role": "assistant", "content": attempt.prefill}])[:-1]
        target = attempt.target if with_targets else ""
        prompts.append(ids + prefix)
        allowed.append(mask + [False] * len(prefix))
        response = conversations.encode_response(tokenizer, [*user, {"role": "assistant", "content": target}])
        responses.append(response if attempt.target_eot else response[:-1])
        prefixes.append(prefix)
    longest = max(len(ids) for ids in prompts)
    if longest > BLOCKS * how.prompt_length:
        raise ValueError(
            f"a prompt of the evaluation has {longest} tokens, more than {BLOCKS} times config.data.prompt_length = "
            f"{how.prompt_length}; raise that key or shorten the prompt"
        )
    length = math.ceil(longest / how.block) * how.block
    return conversations.lay_out(prompts, allowed, responses, length, how.response_length), prefixes


def _shortened(laid_out: Conversations, prompt_length: int, whole: int) -> Conversations:
    """The rows with as much of the response block as the longest response needs, a multiple of 8: few shapes are compiled.

    whole: where the length of the rows is a multiple of it, it stays one; the splash kernel needs that.
    """
    longest = int(laid_out.response_mask_BxT[:, prompt_length:].sum(axis=1).max(initial=1))
    end = math.ceil((prompt_length + math.ceil(longest / RESPONSES) * RESPONSES) / whole) * whole
    return jax.tree.map(lambda x_BxT: x_BxT[:, :end], laid_out)


def _of_suffix(tokenizer: Any, attempt: Attempt, system: str | None) -> list[bool]:
    """Which tokens of the prompt are its suffix's: the user's, after as many as the prompt has without it. ValueError where none is."""

    def users(prompt: str) -> list[bool]:
        return conversations.encode_prompt(tokenizer, conversations.with_system([{"role": "user", "content": prompt}], system), "user")[1]

    whole, before = np.array(users(attempt.prompt)), sum(users(attempt.prompt.removesuffix(attempt.suffix)))
    found = whole & (np.cumsum(whole) > before)
    if not found.any():
        raise ValueError(f"the suffix {attempt.suffix!r} adds no token to the prompt {attempt.prompt!r}; allowed: words of its own")
    return found.tolist()


def attempt_seeds(attempts: Sequence[Attempt], seed: int) -> np.ndarray:
    """One number per attempt, of the seed, the behavior and how many attempts of that behavior stand before it."""
    before: collections.Counter[str] = collections.Counter()
    seeds = []
    for attempt in attempts:
        seeds.append(zlib.crc32(f"{seed} {before[attempt.behavior]} {attempt.behavior}".encode()) & 0x7FFFFFFF)
        before[attempt.behavior] += 1
    return np.array(seeds, np.int32)


def _deltas(attempts: Sequence[Attempt], prompt_length: int) -> dict[int, np.ndarray] | None:
    """The attempts' perturbations BxPxD by site, aligned with the end of the prompt block; None where no attempt has one.

    One that was found in a longer block is cut in front, where it is zero: there was padding.
    """
    deltas: dict[int, np.ndarray] = {}
    for row, attempt in enumerate(attempts):
        for site, delta_PxD in (attempt.delta or {}).items():
            if site not in deltas:
                deltas[site] = np.zeros((len(attempts), prompt_length, delta_PxD.shape[1]), np.float32)
            within_PxD = delta_PxD[-prompt_length:]
            deltas[site][row, prompt_length - len(within_PxD) :] = within_PxD
    return deltas or None


def _batches(total: int, size: int) -> Iterator[np.ndarray]:
    """Row indices of full batches; the last one is filled up with its last row, so that every batch has the one compiled shape."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


def _batches_by_temperature(
    attempts: Sequence[Attempt], how: Decoding, known: frozenset[int]
) -> Iterator[tuple[np.ndarray, float]]:  # fmt: skip
    """Row indices of full batches of one temperature each, which a compiled program is for; without rows whose answers are known."""
    rows: dict[float, list[int]] = {}
    for row, attempt in enumerate(attempts):
        if row in known:
            continue
        rows.setdefault(how.temperature if attempt.temperature is None else attempt.temperature, []).append(row)
    for temperature, numbers in rows.items():
        for places in _batches(len(numbers), how.batch_size):
            yield np.asarray(numbers)[places], temperature


def _before_stop(tokens: np.ndarray, stop: tuple[int, ...]) -> list[int]:
    """The generated ids before the first one that ends the turn."""
    ends = np.flatnonzero(np.isin(tokens, stop))
    return tokens[: ends[0]].tolist() if len(ends) else tokens.tolist()
