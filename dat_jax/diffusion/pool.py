"""The prompt pool: for every behavior prompts x ~ p(x | y) for its responses y, scored, judged, selected, and what that cost.

Sampling is the expensive part and does not know the target: each batch of samples is written as soon as it is drawn and is never
drawn again. Judging and selection follow when all are there. Prompts leave as text: sampler and target have tokenizers of their own.
Files: per batch of behaviors samples/<first behavior>.jsonl and .cost.json, provenance.json, at the end prompts.jsonl and cost.json.
"""

import dataclasses
import json
import re
import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import sharding
from dat_jax.data import manifest, provenance
from dat_jax.data.behaviors import Behavior
from dat_jax.data.plain_text import encode_text
from dat_jax.data.prompts import MARKER, RECORDS, PromptRecord, complete, read_pool, read_records, write_pool, write_records
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import Template, pack, prompt_block, template
from dat_jax.diffusion.likelihood import SCHEMES
from dat_jax.diffusion.parallel import FastSettings
from dat_jax.diffusion.passes import padded_block, sample_rows
from dat_jax.diffusion.sampler import InfillSettings, row_keys
from dat_jax.diffusion.selection import select
from dat_jax.models.huggingface import Model
from dat_jax.settings import check, read

LENGTHS = ("uniform", "behaviors")
REFILLED = 4  # batches of rows between two saves, where slots are refilled
Scores = Callable[[Sequence[Behavior], Sequence[str], Sequence[str]], Sequence[float]]  # of (behaviors, prompts, responses)


@dataclasses.dataclass(frozen=True)
class Pool:
    """The settings of a pool (`config.sampler`, where the model's own keys stand beside them)."""

    samples: int = 64  # prompts drawn per behavior, spread evenly over its responses
    keep: int = 8  # prompts per behavior that are trained on
    prompt_tokens: tuple[int, int] = (8, 32)  # shortest and longest prompt in the sampler's tokens
    prompt_lengths: str = "uniform"  # over prompt_tokens | behaviors: as often as the behaviors' requests are that long, those within it
    response_tokens: int = 64  # a response is cut to that many of the sampler's tokens
    steps: int = 32  # denoising steps; at least the longest prompt: the model's own distribution
    remasking: str = "random"  # random | low_confidence | margin | entropy
    mend: int = 0  # passes that mask tokens which stand twice in a row again, and fill them anew, see diffusion/mending.py
    temperature: float = 1.0
    top_p: float = 1.0
    condition_remasking: float = 0.0  # largest share of a row whose given tokens a step hides; the inpainting reference: 1.0
    cfg_scale: float = 0.0
    acceptance: str = "quota"  # quota: steps as above; threshold | factor | entropy | count: as many tokens per pass as `bound` allows
    bound: float = 0.1  # of acceptance, see diffusion/parallel.py: a probability, a factor, nats, tokens
    cache_refresh: int = 1  # passes from one full pass to the next, the response's keys and values kept between; 1: no cache
    separator: str = "\nAnswer: "  # text between prompt and response
    begin: bool = True  # a row starts with BOS where the sampler's tokenizer has one
    batch_size: int = 64  # rows per forward pass
    likelihood_samples: int = 16  # Monte-Carlo draws of the bound on log p(x | y); 0: none
    likelihood_scheme: str = "antithetic"  # plain | stratified | antithetic (least variance at equal cost)
    selection: str = "combined"  # random | likelihood | stratified | compliance | diversity | combined
    diversity: float = 0.5  # weight of dissimilarity in diversity and combined
    consistency: float = 0.0  # nats per token that a response may be less likely after a prompt than after the request; 0: not asked
    given: int = 4  # words of the response that are given when `consistency` is asked, so that a refusal does not count
    refresh_every: int = 0  # training steps between re-sampled pools; 0: one pool, drawn before training

    def validate(self, key: str = "sampler") -> None:
        """Raises ValueError naming the key whose value is not allowed."""
        low, high = self.prompt_tokens
        checks = {
            "prompt_tokens": (1 <= low <= high, "two integers, 1 <= shortest <= longest"),
            "prompt_lengths": (self.prompt_lengths in LENGTHS, " | ".join(LENGTHS)),
            "samples": (self.samples >= 1, "an integer >= 1"),
            "keep": (1 <= self.keep <= self.samples, f"an integer from 1 to samples ({self.samples})"),
            "response_tokens": (self.response_tokens >= 1, "an integer >= 1"),
            "batch_size": (self.batch_size >= 1, "an integer >= 1"),
            "likelihood_samples": (self.likelihood_samples >= 0, "an integer >= 0"),
            "likelihood_scheme": (self.likelihood_scheme in SCHEMES, " | ".join(SCHEMES)),
            "mend": (self.mend >= 0, "an integer >= 0"),
            "refresh_every": (self.refresh_every >= 0, "an integer >= 0"),
            "consistency": (self.consistency >= 0, "a number >= 0, in nats per token (0: not asked)"),
            "given": (self.given >= 0, "an integer >= 0"),
        }
        check(self, key, checks)
        self.settings(())
        if self.acceptance != "quota":
            self.fast_settings(())
            with_it = f"{{}} with acceptance={self.acceptance!r}"
            off = {"cfg_scale": 0.0, "condition_remasking": 0.0, "top_p": 1.0}
            check(self, key, {name: (getattr(self, name) == value, with_it.format(value)) for name, value in off.items()})
        else:
            check(self, key, {"cache_refresh": (self.cache_refresh == 1, "1 with acceptance='quota'")})
        likely = np.zeros(0) if self.likelihood_samples else None
        select(self.selection, 1, [], likely, np.zeros(0), np.random.default_rng(0), self.diversity)

    def admits(self, record: PromptRecord) -> bool:
        """Whether a prompt may be selected: its response is likely enough after it, or nobody asked."""
        return record.consistency is None or record.consistency >= -self.consistency

    def settings(self, forbidden: tuple[int, ...]) -> InfillSettings:
        """The denoising loop's own settings."""
        return InfillSettings(
            steps=min(self.steps, self.prompt_tokens[1]), remasking=self.remasking, temperature=self.temperature, top_p=self.top_p,
            condition_remasking=self.condition_remasking, cfg_scale=self.cfg_scale, forbidden=forbidden,
        )  # fmt: skip

    def fast_settings(self, forbidden: tuple[int, ...]) -> FastSettings:
        """The settings of fast infilling, for an acceptance other than quota."""
        order = "random" if self.remasking == "random" else "sure"
        return FastSettings(self.acceptance, self.bound, order, self.temperature, forbidden, refresh=self.cache_refresh)


def forbidden_tokens(tokenizer: Any, vocabulary: int, mask_token: int) -> tuple[int, ...]:
    """Ids that a prompt must not hold: special tokens, the mask and ids without a string (they can be drawn but not decoded)."""
    known = set(tokenizer.get_vocab().values())
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted({mask_token, *tokenizer.all_special_ids, *added, *(set(range(vocabulary)) - known)}))


def behavior_key(seed: int, round: int, behavior_id: str) -> jax.Array:
    """The key of a behavior's samples: of nothing but the seed, the round of re-sampling and the id."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), round), zlib.crc32(behavior_id.encode()))


def file_stem(behavior_id: str) -> str:
    """A file name for any behavior id: readable, and different for different ids."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', behavior_id)[:80]}-{zlib.crc32(behavior_id.encode()):08x}"


def possible_lengths(pool: Pool, tokenizer: Any, behaviors: Sequence[Behavior]) -> np.ndarray:
    """The lengths that prompts are drawn from, each as likely as it occurs here.

    Raises ValueError when they are to follow the behaviors' requests and none of these is within `prompt_tokens`.
    """
    low, high = pool.prompt_tokens
    if pool.prompt_lengths == "uniform":
        return np.arange(low, high + 1)
    found = np.array([len(encode_text(tokenizer, behavior.text)) for behavior in behaviors])
    within = found[(found >= low) & (found <= high)]
    if not len(within):
        raise ValueError(
            f"config.sampler.prompt_tokens is {pool.prompt_tokens}, but the requests have {found.min()} to {found.max()} tokens; "
            "allowed with prompt_lengths='behaviors': a range that holds at least one of them"
        )
    return within


def draw(
    pool: Pool,
    sampler: Model,
    behaviors: Sequence[Behavior],
    around: Template,
    forbidden: tuple[int, ...],
    seed: int,
    round: int,
    possible: np.ndarray | None = None,
) -> tuple[list[PromptRecord], dict[str, float]]:
    """All samples of some behaviors as records (not judged, not selected), behavior by behavior, and their cost.

    A sample depends on the seed, the round, the behavior and its number alone, not on what else is drawn with it.
    possible: what `possible_lengths` gives; None: for these behaviors by themselves.
    """
    started = time.monotonic()
    possible = possible_lengths(pool, sampler.tokenizer, behaviors) if possible is None else possible
    numbers, high = np.arange(pool.samples), pool.prompt_tokens[1]
    lengths_by_behavior, keys, answers = [], [], []
    for behavior in behaviors:
        rng = np.random.default_rng((seed, round, zlib.crc32(behavior.id.encode())))
        lengths_by_behavior.append(possible[rng.integers(0, len(possible), pool.samples)])
        keys.append(row_keys(behavior_key(seed, round, behavior.id), jnp.asarray(numbers)))
        encoded = [encode_text(sampler.tokenizer, text) for text in behavior.targets]
        answers += [encoded[number % len(encoded)] for number in numbers]
    lengths = np.concatenate(lengths_by_behavior)
    # Long prompts first: rows of like length share a batch, and where slots are refilled none is left working alone at the end.
    order = np.argsort(-lengths, kind="stable")
    block = padded_block(pool, prompt_block(around, high), sampler.config)
    prompts, responses = [[around.pad] * lengths[i] for i in order], [answers[i] for i in order]
    rows = pack(prompts, responses, around, block, pool.response_tokens)
    tokens_NxT, bound_N, cost = sample_rows(pool, sampler, rows, jnp.concatenate(keys)[order], forbidden, block)
    records = [
        PromptRecord(
            behavior_id=behaviors[index // pool.samples].id,
            prompt=sampler.tokenizer.decode(tokens_NxT[row][rows.prompt_mask_BxT[row]]).strip(),
            response=behaviors[index // pool.samples].targets[index % pool.samples % len(behaviors[index // pool.samples].targets)],
            seed=seed,
            sampler=sampler.source,
            settings={**shaping(pool), "round": round, "sample": index % pool.samples},
            log_likelihood=None if bound_N is None else float(bound_N[row]),
            tokens=int(lengths[index]),
            compliance=None,
            selected=False,
        )
        for index, row in enumerate(np.argsort(order).tolist())
    ]
    return records, {**cost, "tokens": float(lengths.sum()), "samples": float(len(lengths)), "seconds": time.monotonic() - started}


def shaping(pool: Pool) -> dict[str, Any]:
    """The settings that a record carries: everything that shaped its distribution."""
    names = ["steps", "remasking", "temperature", "top_p", "condition_remasking", "cfg_scale", "separator", "begin"]
    fast = ["acceptance", "bound", "cache_refresh"] if pool.acceptance != "quota" else []
    return {name: getattr(pool, name) for name in names + fast + (["mend"] if pool.mend else [])}


def measure(
    records: list[PromptRecord], behaviors: Sequence[Behavior], compliance: Scores | None, consistency: Scores | None
) -> list[PromptRecord]:
    """The records with what the target makes of them.

    Compliance is asked once for each different prompt of a behavior, and consistency once for each different response to it as well.
    """
    of = {behavior.id: behavior for behavior in behaviors}

    def asked(scores: Scores | None, key: Callable[[PromptRecord], Hashable]) -> list[float | None]:
        if scores is None:
            return [None] * len(records)
        once = {key(record): record for record in records}
        columns = zip(*((of[record.behavior_id], record.prompt, record.response) for record in once.values()))
        known = dict(zip(once, map(float, scores(*columns))))
        return [known[key(record)] for record in records]

    complied = asked(compliance, lambda record: (record.behavior_id, record.prompt))
    consistent = asked(consistency, lambda record: (record.behavior_id, record.prompt, record.response))
    return [dataclasses.replace(record, compliance=a, consistency=b) for record, a, b in zip(records, complied, consistent)]


def choose(pool: Pool, records: list[PromptRecord], seed: int, round: int) -> list[PromptRecord]:
    """The records of one behavior with the selected ones marked, none of which is inconsistent with its response."""
    able = [i for i, record in enumerate(records) if pool.admits(record)]
    some, likely, judged = [records[i] for i in able], None, None
    if pool.likelihood_samples:
        likely = np.array([(record.log_likelihood or 0.0) / record.tokens for record in some])
    if not any(record.compliance is None for record in some):
        judged = np.array([record.compliance for record in some], float)
    rng = np.random.default_rng((seed, round, zlib.crc32(records[0].behavior_id.encode()), 1))
    chosen = {able[i] for i in select(pool.selection, pool.keep, [record.prompt for record in some], likely, judged, rng, pool.diversity)}
    return [dataclasses.replace(record, selected=index in chosen) for index, record in enumerate(records)]


def begin(pool: Pool, behaviors: Sequence[Behavior], sampler: Model, folder: epath.Path, seed: int, round: int) -> np.ndarray:
    """Claims a folder for a pool, and returns the lengths that its prompts are drawn from; ValueError when it holds another pool."""
    possible = possible_lengths(pool, sampler.tokenizer, behaviors)
    path = folder / "provenance.json"
    if not path.exists() and any((folder / name).exists() for name in (RECORDS, MARKER, "samples")):
        raise ValueError(f"{path} is gone: nobody knows what the prompts beside it were made with; put it back, or delete {folder}")
    provenance.claim(path, made_with(pool, behaviors, sampler, possible, seed, round), "use another folder")
    return possible


def drawn_together(pool: Pool, behaviors: Sequence[Behavior]) -> list[Sequence[Behavior]]:
    """The groups of behaviors whose prompts are drawn and saved together.

    Their rows fill a batch, or `REFILLED` of them where a finished row's slot is refilled: the fewer groups, the fewer slots stand idle.
    These groups are of like size, so that few shapes are compiled.
    """
    size = max(1, (1 if pool.acceptance == "quota" else REFILLED) * pool.batch_size // pool.samples)
    count = -(-len(behaviors) // size)
    if pool.acceptance != "quota":
        size = -(-len(behaviors) // max(1, count))
    return [behaviors[start : start + size] for start in range(0, len(behaviors), max(1, size))]


def draw_all(
    pool: Pool,
    behaviors: Sequence[Behavior],
    sampler: Model,
    folder: epath.Path,
    seed: int,
    round: int,
    report: Callable[[str], None],
    label: str = "sample",
    ended: bool = True,
) -> tuple[list[PromptRecord], dict[str, float]]:
    """Draws the prompts of all behaviors in groups that fill a batch, and returns them with their cost; what is drawn stays.

    ended: whether an end of text stands behind the responses, as behind those that samplers are trained on here.
    Raises ValueError when `folder` holds samples of other settings, naming the first that differs.
    """
    possible = begin(pool, behaviors, sampler, folder, seed, round)
    around = template(sampler.tokenizer, pool.separator, pool.begin, ended)
    forbidden = forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask_id(sampler.config))
    groups = drawn_together(pool, behaviors)
    stems = [folder / "samples" / file_stem(group[0].id) for group in groups]  # the provenance fixes the sizes, but for `REFILLED`
    there = sharding.agreed([manifest.whole(f"{stem}.cost.json", f"{stem.name}.jsonl") for stem in stems])
    records, costs, started, fresh = [], [], time.monotonic(), 0
    for number, (group, stem) in enumerate(zip(groups, stems), 1):
        if not there[number - 1]:
            drawn, cost = draw(pool, sampler, group, around, forbidden, seed, round, possible)
            if jax.process_index() == 0:
                entry = write_records(f"{stem}.jsonl", drawn)
                manifest.write(f"{stem}.cost.json", cost, {f"{stem.name}.jsonl": entry})  # last: its presence says that all are there
            multihost_utils.sync_global_devices(f"drawn {label} {number}")  # before the others read them
            fresh += 1
            if fresh == 1 or number == len(groups) or number % max(1, len(groups) // 10) == 0:
                left = (time.monotonic() - started) / fresh * (len(groups) - number)
                report(f"{label}: batch {number}/{len(groups)}  {pool.samples} prompts for each of {len(group)}  {left:.0f} s left")
        costs.append(manifest.check(f"{stem}.cost.json", "put it back as it was, or delete both to draw these prompts again").content)
        if costs[-1]["samples"] != len(group) * pool.samples:
            raise ValueError(
                f"{stem}.jsonl holds {costs[-1]['samples']:.0f} prompts of an earlier version's group of behaviors, and {len(group)} x "
                f"{pool.samples} are drawn together now; delete {folder / 'samples'} to draw them again"
            )
        records += read_records(f"{stem}.jsonl")
    return records, {name: sum(cost[name] for cost in costs) for name in costs[0]}


def build_pool(
    config: Any,
    behaviors: Sequence[Behavior],
    sampler: Model,
    compliance: Scores | None,
    folder: str,
    seed: int = 0,
    round: int = 0,
    report: Callable[[str], None] = print,
    asking_flops: float = 0.0,
    consistency: Scores | None = None,
    beside: Callable[[list[PromptRecord]], dict[str, Any]] | None = None,
    spent: Mapping[str, float] | None = None,
) -> list[PromptRecord]:
    """Draws, judges and selects prompts for all behaviors, and returns all records; what is in `folder` already is not drawn again.

    config: the `sampler` sub-config. compliance(behaviors, prompts, responses) gives a score from 0 to 1 per prompt, and `consistency` by
    how many nats per token the response is likelier than after the behavior's request (None: the target is not asked). `round` numbers
    re-sampled pools during training: the same seed and round give the same pool. asking_flops: operations of asking the target about one
    prompt in all these ways, for the cost. beside(records): JSON objects by the names of the files that are to stand beside the records.
    spent: what the sampler cost before it drew. Raises ValueError when `folder` holds a pool of other settings, naming the first that
    differs, or was damaged, or when no prompt is consistent.
    """
    pool, root = read(Pool, config), epath.Path(folder)
    pool.validate()
    begin(pool, behaviors, sampler, root, seed, round)
    if complete(root):  # a copied pool serves without its samples
        return read_pool(root)
    records, cost = draw_all(pool, behaviors, sampler, root, seed, round, report)
    judging = time.monotonic()
    of: dict[str, list[PromptRecord]] = {behavior.id: [] for behavior in behaviors}
    for record in measure(records, behaviors, compliance, consistency):
        of[record.behavior_id].append(record)
    pooled = [record for records in of.values() for record in choose(pool, records, seed, round)]
    if consistency and not any(record.selected for record in pooled):
        raise ValueError(
            f"config.sampler.consistency is {pool.consistency}, and none of {len(pooled)} sampled prompts is consistent with its response; "
            "allowed: at least one; raise it, or set 0 to keep them all, in another workdir"
        )
    prompts = len({(record.behavior_id, record.prompt) for record in records}) if compliance or consistency else 0
    cost |= {"judging_seconds": time.monotonic() - judging, "asking_flops": prompts * asking_flops, **(spent or {})}
    write_pool(root, pooled, cost, beside(pooled) if beside else {})
    return pooled


def unselected(pool: Pool, samples: int) -> Pool:
    """Returns the settings by which so many prompts are drawn and all of them kept, as they come."""
    return dataclasses.replace(pool, samples=samples, keep=samples, likelihood_samples=0, selection="random", consistency=0.0)


def recorded(pool: Pool) -> dict[str, Any]:
    """The settings as files record what they were made with; files without `mend` are older, and were not mended."""
    return {name: value for name, value in dataclasses.asdict(pool).items() if name != "mend" or value}


@jax.jit  # or a large table would be there in float32, twice
def _sum_of_sizes(table_VxD: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(table_VxD.astype(jnp.float32)))


def made_with(pool: Pool, behaviors: Sequence[Behavior], sampler: Model, possible: np.ndarray, seed: int, round: int) -> dict[str, Any]:
    """What a pool depends on. The sampler is known by its sizes and a sum over weights, not by its path, so that a folder may move."""
    texts = json.dumps([[behavior.id, *behavior.targets] for behavior in behaviors]).encode()
    weights = f"{float(_sum_of_sizes(sampler.params['embedding'])):.4e}"
    return {
        "behaviors": f"{zlib.crc32(texts):08x}", **recorded(pool), "model_type": sampler.config.model_type,
        "vocab_size": sampler.config.vocab_size, "weights": weights, "seed": seed, "round": round,
        "lengths": f"{zlib.crc32(json.dumps(possible.tolist()).encode()):08x}",
    }  # fmt: skip
