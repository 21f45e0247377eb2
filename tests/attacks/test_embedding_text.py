"""The embedding attack on texts that other attacks tried: which of them, and what is done with them."""

import dataclasses

import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, embedding_text
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import validate
from dat_jax.training.perturbation import Perturbation

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("a b",), ("no",))]
GIVEN = [Attempt("1", prompt, "with a brush") for prompt in ("a b c", "with a brush", "d", "e f g")] + [Attempt("2", "c d", "a b")]


def test_the_texts_after_which_the_target_is_likeliest_are_perturbed(small_model):
    how = Decoding(prompt_length=16, response_length=5, max_new_tokens=4, batch_size=2, temperature=0.0, perturb="user", system=None)
    asked, settings = Victim(small_model, how, 0), embedding_text.Settings(Perturbation(steps=2, radius=0.5), most=2)
    found = ATTACKS["embedding+text"].attempts(BEHAVIORS, asked, Context(0, settings, "gcg", given=GIVEN))
    told = [dataclasses.replace(attempt, target_eot=False) for attempt in GIVEN]
    likely = [asked.log_likelihood([attempt])[0] for attempt in told[:4]]  # one by one: a batch changes nothing
    best = sorted(sorted(range(4), key=lambda place: -likely[place])[:2])
    assert best != [0, 1] and [attempt.prompt for attempt in found] == [*(GIVEN[place].prompt for place in best), "c d"]
    assert not any(attempt.target_eot for attempt in found)
    for attempt, expected in zip(found, asked.perturb([*(told[place] for place in best), told[4]], settings.perturbation)):
        assert np.abs(attempt.delta[0]).max() > 0
        np.testing.assert_array_equal(attempt.delta[0], expected.delta[0])
    every = ATTACKS["embedding+text"].attempts(BEHAVIORS[:1], asked, Context(0, dataclasses.replace(settings, most=4), "gcg", given=GIVEN))
    assert [attempt.prompt for attempt in every] == [attempt.prompt for attempt in GIVEN[:4]]


@pytest.mark.parametrize("bad, key", [({"most": 0}, "most"), ({"perturbation": Perturbation(sites=(1,))}, r"perturbation\.sites")])
def test_settings_that_cannot_be(bad, key):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{key} is"):
        validate(embedding_text.Settings(**bad), "attacks.x")
