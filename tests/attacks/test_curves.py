"""Attacks whose variants are points of a curve: over the radius and over the words that are given."""

import dataclasses

import pytest

from dat_jax.attacks import ATTACKS, embedding, prefill
from dat_jax.attacks.attack import Context
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import validate

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush and some oil",), ("no",)), Behavior("2", "wash", ("a b",), ("no",))]


class Remembering:
    """A victim that notes how it was perturbed."""

    def perturb(self, attempts, how):
        self.how = how
        return attempts


def test_a_radius_per_variant_and_nothing_else_changed():
    attack, settings = ATTACKS["embedding_radius"], embedding.Settings(radii=(0.25, 1.0, 2.0))
    assert attack.variants(settings, ("past",)) == ["0.25", "1", "2"] and attack.curve and attack.surface == "embedding"
    victim = Remembering()
    for variant in ("0.25", "2"):
        found = attack.attempts(BEHAVIORS, victim, Context(0, settings, variant))
        assert victim.how == dataclasses.replace(settings.perturbation, radius=float(variant))
        assert [attempt.prompt for attempt in found] == ["paint the wood", "wash"]


def test_as_many_words_as_the_variant_says():
    attack, settings = ATTACKS["prefill_words"], prefill.Settings(lengths=(1, 3, 20))
    assert attack.variants(settings, ()) == ["1", "3", "20"] and attack.surface == "prefill"
    given = [attack.attempts(BEHAVIORS, None, Context(0, settings, variant))[0].prefill for variant in ("1", "3", "20")]
    assert given == ["with", "with a brush", "with a brush and some"]  # at least one word is left for the model


@pytest.mark.parametrize("bad, key", [(embedding.Settings(radii=()), "radii"), (embedding.Settings(radii=(0.1, -1.0)), "radii"),
                                      (prefill.Settings(lengths=(0,)), "lengths")])  # fmt: skip
def test_points_that_cannot_be(bad, key):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{key} is"):
        validate(bad, "attacks.x")
