"""The prompt pool: for every behavior prompts x ~ p(x | y) for its responses y, scored, judged, selected, and what that cost.

Sampling is the expensive part and does not know the target: each behavior's samples are written as soon as they are drawn and are never
drawn again. Judging and selection follow when all are there. Prompts leave as text: sampler and target have tokenizers of their own.
Files: samples/<behavior>.jsonl with <behavior>.cost.json, provenance.json, and at the end prompts.jsonl (all samples) and cost.json.
"""

import dataclasses
import json
import re
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import sharding
from dat_jax.data import files
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord, read_prompts, write_prompts
from dat_jax.diffusion.denoiser import forward_flops, mask_id
from dat_jax.diffusion.layout import Rows, Template, encode, pack, prompt_block, template
from dat_jax.diffusion.likelihood import SCHEMES, log_likelihood
from dat_jax.diffusion.parallel import FastSettings, infill_fast
from dat_jax.diffusion.sampler import SamplerSettings, infill, row_keys
from dat_jax.diffusion.selection import select
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

Compliance = Callable[[Sequence[Behavior], Sequence[str], Sequence[str]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Pool:
    """The settings of a pool (`config.sampler`, where the model's own keys stand beside them)."""

    samples: int = 64  # prompts drawn per behavior, spread evenly over its responses
    keep: int = 8  # prompts per behavior that are trained on
    prompt_tokens: tuple[int, int] = (8, 32)  # lengths of the prompts in the sampler's tokens, drawn uniformly, both ends included
    response_tokens: int = 64  # a response is cut to that many of the sampler's tokens
    steps: int = 32  # denoising steps; at least the longest prompt: the model's own distribution
    remasking: str = "random"  # random | low_confidence | margin | entropy
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
    refresh_every: int = 0  # training steps between re-sampled pools; 0: one pool, drawn before training

    def validate(self, name: str = "sampler") -> None:
        """Raises ValueError naming the key whose value is not allowed."""
        low, high = self.prompt_tokens
        checks = {
            "prompt_tokens": (1 <= low <= high, "two integers, 1 <= shortest <= longest"),
            "samples": (self.samples >= 1, "an integer >= 1"),
            "keep": (1 <= self.keep <= self.samples, f"an integer from 1 to samples ({self.samples})"),
            "response_tokens": (self.response_tokens >= 1, "an integer >= 1"),
            "batch_size": (self.batch_size >= 1, "an integer >= 1"),
            "likelihood_samples": (self.likelihood_samples >= 0, "an integer >= 0"),
            "likelihood_scheme": (self.likelihood_scheme in SCHEMES, " | ".join(SCHEMES)),
            "refresh_every": (self.refresh_every >= 0, "an integer >= 0"),
        }
        for key, (fine, allowed) in checks.items():
            if not fine:
                raise ValueError(f"config.{name}.{key} is {getattr(self, key)!r}; allowed: {allowed}")
        self.settings(())
        if self.acceptance != "quota":
            self.fast_settings(())
            for key, off in (("cfg_scale", 0.0), ("condition_remasking", 0.0), ("top_p", 1.0)):
                if getattr(self, key) != off:
                    raise ValueError(f"config.{name}.{key} is {getattr(self, key)!r}; allowed with acceptance={self.acceptance!r}: {off}")
        elif self.cache_refresh != 1:
            raise ValueError(f"config.{name}.cache_refresh is {self.cache_refresh}; allowed with acceptance='quota': 1")
        select(
            self.selection, 1, [], np.zeros(0) if self.likelihood_samples else None, np.zeros(0), np.random.default_rng(0), self.diversity
        )

    def settings(self, forbidden: tuple[int, ...]) -> SamplerSettings:
        """The denoising loop's own settings."""
        return SamplerSettings(
            steps=min(self.steps, self.prompt_tokens[1]), remasking=self.remasking, temperature=self.temperature, top_p=self.top_p,
            condition_remasking=self.condition_remasking, cfg_scale=self.cfg_scale, forbidden=forbidden,
        )  # fmt: skip

    def fast_settings(self, forbidden: tuple[int, ...]) -> FastSettings:
        """The settings of fast infilling, for an acceptance other than quota."""
        order = "random" if self.remasking == "random" else "sure"
        return FastSettings(self.acceptance, self.bound, order, self.temperature, forbidden, refresh=self.cache_refresh)


def pool_settings(config: Any) -> Pool:
    """The Pool of a `sampler` sub-config that may hold other keys too."""
    values: dict[str, Any] = {field.name: config[field.name] for field in dataclasses.fields(Pool)}
    return Pool(**{**values, "prompt_tokens": tuple(values["prompt_tokens"])})


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


def draw(
    pool: Pool, sampler: Model, behavior: Behavior, around: Template, forbidden: tuple[int, ...], seed: int, round: int
) -> tuple[list[PromptRecord], dict[str, float]]:
    """All samples of one behavior as records (not judged, not selected), and their cost."""
    started = time.monotonic()
    key, high = behavior_key(seed, round, behavior.id), pool.prompt_tokens[1]
    rng = np.random.default_rng((seed, round, zlib.crc32(behavior.id.encode())))
    lengths = rng.integers(pool.prompt_tokens[0], high + 1, pool.samples)
    answers = [encode(sampler.tokenizer, text) for text in behavior.targets]
    size, block = min(pool.batch_size, pool.samples), prompt_block(around, high)
    records: list[PromptRecord] = []
    cost = {"forward_passes": 0.0, "flops": 0.0, "positions": 0.0}
    for start in range(0, pool.samples, size):
        index = list(range(start, min(start + size, pool.samples)))
        full = index + [index[-1]] * (size - len(index))  # one shape, one compilation; the repeated rows are dropped
        prompts, responses = [[around.pad] * lengths[i] for i in full], [answers[i % len(answers)] for i in full]
        rows = pack(prompts, responses, around, block, pool.response_tokens)
        tokens_BxT, bound_B, passes = sample_rows(pool, sampler, rows, row_keys(key, jnp.asarray(full)), forbidden, block)
        for row, number in enumerate(index):
            record = PromptRecord(
                behavior_id=behavior.id,
                prompt=sampler.tokenizer.decode(tokens_BxT[row][rows.prompt_mask_BxT[row]]).strip(),
                response=behavior.targets[number % len(answers)],
                seed=seed,
                sampler=sampler.source,
                settings={**provenance(pool), "round": round, "sample": number},
                log_likelihood=None if bound_B is None else float(bound_B[row]),
                tokens=int(lengths[number]),
                compliance=None,
                selected=False,
            )
            records.append(record)
        for name, value in batch_cost(pool, sampler.config, size, block, passes).items():
            cost[name] += value
    return records, {**cost, "tokens": float(lengths.sum()), "samples": float(pool.samples), "seconds": time.monotonic() - started}


def provenance(pool: Pool) -> dict[str, Any]:
    """The settings that a record carries: everything that shaped its distribution."""
    shaping = ["steps", "remasking", "temperature", "top_p", "condition_remasking", "cfg_scale", "separator", "begin"]
    fast = ["acceptance", "bound", "cache_refresh"] if pool.acceptance != "quota" else []
    return {name: getattr(pool, name) for name in shaping + fast}


def batch_cost(pool: Pool, config: ModelConfig, rows: int, block: int, passes: int) -> dict[str, float]:
    """Forward passes, operations and positions of one batch: `passes` denoising passes and the draws of the likelihood bound."""
    length, high = block + pool.response_tokens, pool.prompt_tokens[1]
    steps = pool.settings(()).steps
    head = -(-high // steps) if pool.remasking == "random" and pool.acceptance == "quota" else high
    branches = 2 if pool.cfg_scale else 1
    full = -(-passes // pool.cache_refresh)
    flops = full * branches * forward_flops(config, length, head) + pool.likelihood_samples * forward_flops(config, length, high)
    flops += (passes - full) * forward_flops(config, block, head, keys=length)
    positions = (full * branches + pool.likelihood_samples) * length + (passes - full) * block
    return {
        "forward_passes": float(passes * branches + pool.likelihood_samples),
        "flops": float(rows * flops),
        "positions": float(rows * positions),
    }


def sample_rows(
    pool: Pool, sampler: Model, rows: Rows, keys_B: jax.Array, forbidden: tuple[int, ...], block: int
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Infilled tokens, the bound on log p(prompt | response) (None when it is not asked for), and the number of denoising passes."""
    model, span = (sampler.params, sampler.config), pool.prompt_tokens[1]
    prompt_mask, valid = jnp.asarray(rows.prompt_mask_BxT), jnp.asarray(rows.valid_BxT)
    inputs = jnp.asarray(rows.tokens_BxT), prompt_mask, valid, keys_B
    if pool.acceptance == "quota":
        done = infill(*model, *inputs, pool.settings(forbidden), span)
    else:
        done = infill_fast(*model, *inputs, pool.fast_settings(forbidden), span, (0, block))
    bound_B = None
    if pool.likelihood_samples:
        draws, scheme = pool.likelihood_samples, pool.likelihood_scheme
        bound_B = sharding.on_host(log_likelihood(*model, done.tokens_BxT, prompt_mask, valid, keys_B, draws, scheme=scheme, span=span))
    return sharding.on_host(done.tokens_BxT), bound_B, int(np.max(sharding.on_host(done.forwards_B)))


def judge(records: list[PromptRecord], behaviors: Sequence[Behavior], compliance: Compliance | None) -> list[PromptRecord]:
    """The records with the current target's compliance, asked once for each different prompt of a behavior."""
    if compliance is None:
        return records
    of = {behavior.id: behavior for behavior in behaviors}
    asked = {(record.behavior_id, record.prompt): record for record in records}
    scores = compliance([of[id] for id, _ in asked], [prompt for _, prompt in asked], [record.response for record in asked.values()])
    known = {key: float(score) for key, score in zip(asked, scores)}
    return [dataclasses.replace(record, compliance=known[record.behavior_id, record.prompt]) for record in records]


def choose(pool: Pool, records: list[PromptRecord], seed: int, round: int) -> list[PromptRecord]:
    """The records of one behavior with the selected ones marked."""
    likely = None
    if pool.likelihood_samples:
        likely = np.array([(record.log_likelihood or 0.0) / record.tokens for record in records])
    judged = None if any(record.compliance is None for record in records) else np.array([record.compliance for record in records], float)
    rng = np.random.default_rng((seed, round, zlib.crc32(records[0].behavior_id.encode()), 1))
    chosen = set(select(pool.selection, pool.keep, [record.prompt for record in records], likely, judged, rng, pool.diversity))
    return [dataclasses.replace(record, selected=index in chosen) for index, record in enumerate(records)]


def build_pool(
    config: Any,
    behaviors: Sequence[Behavior],
    sampler: Model,
    compliance: Compliance | None,
    folder: str,
    seed: int = 0,
    round: int = 0,
    report: Callable[[str], None] = print,
) -> list[PromptRecord]:
    """Draws, judges and selects prompts for all behaviors, and returns all records; what is in `folder` already is not drawn again.

    config: the `sampler` sub-config. compliance(behaviors, prompts, responses) gives a score from 0 to 1 per prompt (None: not judged).
    `round` numbers re-sampled pools during training: the same seed and round give the same pool.
    Raises ValueError when `folder` holds a pool of other settings, naming the first that differs.
    """
    pool = pool_settings(config)
    pool.validate()
    mask = mask_id(sampler.config)
    root = epath.Path(folder)
    same_provenance(root / "provenance.json", pool, behaviors, sampler, seed, round)
    if complete(root):
        return read_prompts(root / "prompts.jsonl")
    around = template(sampler.tokenizer, pool.separator, pool.begin)
    forbidden = forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask)
    drawn, costs, started, fresh = [], [], time.monotonic(), 0
    stems = [root / "samples" / file_stem(behavior.id) for behavior in behaviors]
    there = sharding.agreed([epath.Path(f"{stem}.cost.json").exists() for stem in stems])
    for number, (behavior, stem) in enumerate(zip(behaviors, stems), 1):
        if not there[number - 1]:
            records, cost = draw(pool, sampler, behavior, around, forbidden, seed, round)
            if jax.process_index() == 0:
                write_prompts(f"{stem}.jsonl", records)
                files.write_text(f"{stem}.cost.json", json.dumps(cost))  # last: its presence says that the samples are complete
            multihost_utils.sync_global_devices(f"drawn {number}")  # before the others read them
            fresh += 1
            if fresh == 1 or number == len(behaviors) or number % max(1, len(behaviors) // 10) == 0:
                left = (time.monotonic() - started) / fresh * (len(behaviors) - number)
                report(f"sample: behavior {number}/{len(behaviors)}  {pool.samples} prompts each  {left:.0f} s left")
        drawn.append(read_prompts(f"{stem}.jsonl"))
        costs.append(files.read_json(f"{stem}.cost.json"))
    judging = time.monotonic()
    judged = judge([record for records in drawn for record in records], behaviors, compliance)
    of: dict[str, list[PromptRecord]] = {behavior.id: [] for behavior in behaviors}
    for record in judged:
        of[record.behavior_id].append(record)
    pooled = [record for records in of.values() for record in choose(pool, records, seed, round)]
    if jax.process_index() == 0:
        write_prompts(root / "prompts.jsonl", pooled)
        total = {name: sum(cost[name] for cost in costs) for name in costs[0]}
        files.write_text(root / "cost.json", json.dumps({**total, "judging_seconds": time.monotonic() - judging}, indent=2) + "\n")
    multihost_utils.sync_global_devices(f"pool {round}")  # before the others read it
    return pooled


def complete(folder: epath.Path) -> bool:
    """Whether a folder holds a finished pool; every process must ask, and all get the same answer."""
    return bool(sharding.agreed((folder / "prompts.jsonl").exists() and (folder / "cost.json").exists()))


def same_provenance(path: Any, pool: Pool, behaviors: Sequence[Behavior], sampler: Model, seed: int, round: int) -> None:
    """Writes what the pool depends on, or raises ValueError when `path` holds something else.

    The sampler is known by its sizes and a sum over weights, not by its path, so that a work directory may move.
    """
    texts = json.dumps([[behavior.id, *behavior.targets] for behavior in behaviors]).encode()
    weights = f"{float(jnp.sum(jnp.abs(sampler.params['embedding'].astype(jnp.float32)))):.4e}"
    wanted = {
        **dataclasses.asdict(pool), "model_type": sampler.config.model_type, "vocab_size": sampler.config.vocab_size, "weights": weights,
        "seed": seed, "round": round, "behaviors": f"{zlib.crc32(texts):08x}",
    }  # fmt: skip
    wanted = json.loads(json.dumps(wanted))
    if not sharding.agreed(path.exists()):
        if jax.process_index() == 0:
            files.write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = files.read_json(str(path))
    for key in sorted(wanted, key=lambda name: name != "behaviors"):
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"{path}: this pool was made with {key} = {found.get(key)!r}, the config has {wanted[key]!r}; use another folder"
            )
