"""Diffusion infilling in two rounds: the sampler's own prompts, and those of the sampler when it has learned which of them broke the model.

All behaviors are attacked together: one that no prompt broke has nothing to learn from, and gains by what broke the others. The prompts of
both rounds are tried.
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dat_jax.attacks.attack import Attack, Attempt, Context, Stopped
from dat_jax.attacks.victim import Victim
from dat_jax.data.answers import Exchange
from dat_jax.data.behaviors import Behavior
from dat_jax.diffusion import pool as pool_lib
from dat_jax.diffusion import preference
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import template
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Preference
from dat_jax.models.huggingface import Model
from dat_jax.settings import check


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.infilling_adapted."""

    samples: int = 64  # prompts per behavior, in each of the two rounds, drawn as config.sampler says
    preference: Preference = dataclasses.field(default_factory=lambda: Preference(steps=100))

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"samples": (self.samples >= 1, "an integer >= 1")})
        steps = self.preference.steps
        check(self.preference, f"{key}.preference", {"steps": (steps >= 1, "an integer >= 1: without it this is the attack infilling")})


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Draws, asks, adapts the sampler and draws again; a killed run goes on at the behavior that it was at.

    Raises Stopped without a judge or a sampler.
    """
    if context.judge is None or context.sampler is None:
        raise Stopped("config.attacks.infilling_adapted needs a judge and config.sampler.model; allowed: to run it with --mode=evaluate")
    (sampler, pool), before = context.sampler(), dict(context.spent)
    state, lengths = _load(behaviors, context), pool_lib.possible_lengths(pool, sampler.tokenizer, behaviors)
    first = state["first"]
    for number, behavior in enumerate(behaviors, 1):
        if behavior.id not in first:
            prompts = drawn(pool, sampler, behavior, lengths, victim, context, 0)
            first[behavior.id] = {"prompts": prompts, "broke": broken(behavior, prompts, victim, context)}
            _save(behaviors, context, state, before)
        _say("first round", number, behaviors)
    tried = [(b.id, b.targets[0], *one) for b in behaviors for one in zip(first[b.id]["prompts"], first[b.id]["broke"])]
    settings = context.settings.preference
    pairs = preference.pairs_of(tried, settings.pairs, context.seed, 0)
    logging.info("infilling_adapted: %d of %d prompts break the model; %d pairs of %d behaviors", sum(one[-1] for one in tried), len(tried),
                 len(pairs), len({pair.behavior_id for pair in pairs}))  # fmt: skip
    factors = preference.adapt(pool, sampler, pairs, settings, (context.seed, 0), logging.info)
    if factors is None:
        logging.warning("infilling_adapted: the sampler stays as it is: no behavior has prompts of both kinds")
    elif not state["adapted"]:  # after a kill it learns the same again, and is counted once
        context.count("flops", preference.operations(pool, sampler, settings))
        state["adapted"] = True
    adapted = preference.adapted(sampler, factors)
    for number, behavior in enumerate(behaviors, 1):
        if behavior.id not in state["second"]:
            state["second"][behavior.id] = drawn(pool, adapted, behavior, lengths, victim, context, 1)
            _save(behaviors, context, state, before)
        _say("second round", number, behaviors)
    both = {b.id: dict.fromkeys([*first[b.id]["prompts"], *state["second"][b.id]]) for b in behaviors}
    return [Attempt(b.id, prompt, b.targets[0]) for b in behaviors for prompt in both[b.id]]


def drawn(pool: Pool, sampler: Model, behavior: Behavior, lengths: np.ndarray, victim: Victim, context: Context, round: int) -> list[str]:
    """The different prompts of a round for a behavior's first target that can be sent to the model; lengths: `pool.possible_lengths`."""
    forbidden = pool_lib.forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask_id(sampler.config))
    around, only = template(sampler.tokenizer, pool.separator, pool.begin), dataclasses.replace(behavior, targets=behavior.targets[:1])
    records, cost = pool_lib.draw(pool, sampler, [only], around, forbidden, context.seed, round, lengths)
    context.count("flops", cost["flops"])
    return [prompt for prompt in dict.fromkeys(record.prompt for record in records) if prompt.strip() and victim.fits(prompt)]


def broken(behavior: Behavior, prompts: Sequence[str], victim: Victim, context: Context) -> list[bool]:
    """Which prompts the model complies with, by the judge."""
    asked = [Attempt(behavior.id, prompt, behavior.targets[0]) for prompt in prompts]
    answers = victim.answer(asked)
    exchanges = [Exchange(behavior.id, behavior.text, a.prompt, "", r, behavior.context) for a, r in zip(asked, answers)]
    return [verdict.label == "comply" for verdict in context.judge(exchanges)] if exchanges and context.judge else []


def _say(what: str, number: int, behaviors: Sequence[Behavior]) -> None:
    if number % max(1, len(behaviors) // 4) == 0:
        logging.info("infilling_adapted: %s, %d of %d behaviors", what, number, len(behaviors))


# The progress in the store.


def _about(behaviors: Sequence[Behavior], context: Context) -> int:
    """A checksum of what the prompts depend on beside the models and the judge."""
    asked = [(behavior.id, behavior.text, behavior.targets[:1]) for behavior in behaviors]
    return zlib.crc32(json.dumps([context.seed, dataclasses.asdict(context.settings), asked]).encode())


def _save(behaviors: Sequence[Behavior], context: Context, state: dict[str, Any], before: dict[str, float]) -> None:
    if context.store is not None:
        spent = {name: number - before.get(name, 0) for name, number in context.spent.items()}
        text = json.dumps(state | {"spent": spent}).encode()
        context.store.save({"about": np.array(_about(behaviors, context)), "state": np.frombuffer(text, np.uint8)})


def _load(behaviors: Sequence[Behavior], context: Context) -> dict[str, Any]:
    """What `_save` kept, its cost counted; the beginning where there is nothing, or that of other settings or texts."""
    saved = {} if context.store is None else context.store.load()
    if int(saved.get("about", -1)) != _about(behaviors, context):
        return {"first": {}, "second": {}, "adapted": False}
    state = json.loads(saved["state"].tobytes())
    for name, number in state.pop("spent").items():
        context.count(name, number)
    return state


ATTACK = Attack(
    name="infilling_adapted", title="Diffusion infilling, adapted", surface="text", attempts=attempts, settings=Settings, adaptive=True,
    uses_judge=True, uses_target=True, uses_sampler=True, together=True,
)  # fmt: skip
