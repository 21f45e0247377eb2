"""The adapted infilling attack: the second round draws more of what broke the model, also where nothing did, and a kill changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, infilling_adapted
from dat_jax.attacks.attack import Context, Stopped
from dat_jax.data.behaviors import Behavior
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Preference
from dat_jax.judges.judge import Verdict
from dat_jax.models import weights
from dat_jax.models.huggingface import Model
from dat_jax.settings import validate

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("how did people",), ("no",))]
POOL = Pool(samples=48, keep=48, prompt_tokens=(3, 3), response_tokens=4, steps=3, batch_size=48, likelihood_samples=0, selection="random")
SETTINGS = infilling_adapted.Settings(preference=Preference(steps=20, learning_rate=3e-2, draws=2, batch_size=16, rank=2, pairs=48))
ATTEMPTS = ATTACKS["infilling_adapted"].attempts


class Target:
    """Complies with prompts that have one of some words, but never for the second behavior."""

    def __init__(self):
        self.spent, self.asked = {"answers": 0, "flops": 0.0}, []

    def answer(self, attempts):
        self.spent["answers"] += len(attempts)
        self.asked += [attempt.prompt for attempt in attempts]
        return ["yes" if weak(attempt.prompt) and attempt.behavior == "1" else "no" for attempt in attempts]

    def fits(self, prompt):
        return True


def weak(prompt):
    return bool({*"abcd", "door", "wood"} & set(prompt.split()))


def judge(exchanges):
    return [Verdict("comply" if exchange.response == "yes" else "refuse", 1.0) for exchange in exchanges]


class Store:
    """Keeps the progress, and is killed at a save."""

    def __init__(self, killed_at=0):
        self.arrays, self.saves, self.killed_at = {}, 0, killed_at

    def load(self):
        return self.arrays

    def save(self, arrays):
        self.arrays, self.saves = {name: np.array(value) for name, value in arrays.items()}, self.saves + 1
        if self.saves == self.killed_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def sampler(small_model):
    """An untrained masked-diffusion LM over the target's words, its mask one id above them."""
    words = small_model.config.vocab_size
    config = dataclasses.replace(small_model.config, vocab_size=words + 1, causal=False, mask_token=words, model_type="llada")
    return Model(weights.initialize(jax.random.key(7), config), config, small_model.tokenizer, "small")


def run(sampler, target, store=None, settings=SETTINGS):
    context = Context(0, settings, judge=judge, sampler=lambda: (sampler, POOL), store=store, spent=target.spent)
    return ATTEMPTS(BEHAVIORS, target, context)


def test_the_second_round_draws_more_of_what_broke_the_model(sampler):
    whole = Target()
    found = run(sampler, whole)
    asked = {id: [a.prompt for a in found if a.behavior == id] for id in ("1", "2")}
    first = {id: [p for p in prompts if p in set(whole.asked)] for id, prompts in asked.items()}
    for id in ("1", "2"):  # nothing broke the second behavior, and it gains by what was learned on the first
        second = [prompt for prompt in asked[id] if prompt not in set(first[id])]
        before, after = (np.mean([weak(prompt) for prompt in prompts]) for prompts in (first[id], second))
        assert after > before + 0.2, (id, before, after)
        assert asked[id][: len(first[id])] == first[id] and len(set(asked[id])) == len(asked[id])
    assert whole.spent["answers"] == len(whole.asked) and whole.spent["flops"] > 0

    store = Store(killed_at=1)  # in the first round
    with pytest.raises(KeyboardInterrupt):
        run(sampler, Target(), store)
    store.killed_at = 3  # and in the second
    with pytest.raises(KeyboardInterrupt):
        run(sampler, Target(), store)
    again = Target()
    assert run(sampler, again, store) == found and again.spent == whole.spent and again.asked == []


def test_what_it_needs_is_named(sampler):
    with pytest.raises(Stopped, match=r"needs a judge and config\.sampler\.model"):
        ATTEMPTS(BEHAVIORS, Target(), Context(0, SETTINGS))
    for settings, message in (
        (dataclasses.replace(SETTINGS, preference=Preference()), r"infilling_adapted\.preference\.steps is 0; allowed: an integer >= 1"),
        (dataclasses.replace(SETTINGS, samples=0), r"infilling_adapted\.samples is 0; allowed: an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(settings, "attacks.infilling_adapted")
