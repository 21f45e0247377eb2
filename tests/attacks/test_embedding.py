"""The embedding attack: what it perturbs, alone and on top of rewrites, and on top of which of them."""

import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, embedding
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.training.perturbation import Perturbation

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("a b", "c"), ("no",))]
REWRITES = [Rewrite("1", "past", "how did people paint the wood"), Rewrite("2", "x", "c d"), Rewrite("1", "x", "a b")]
SETTINGS = embedding.Settings(Perturbation(steps=2, radius=0.5))


@pytest.fixture
def asked(small_model):
    decoding = Decoding(
        prompt_length=16, response_length=5, max_new_tokens=4, batch_size=2, temperature=0.0, perturb="user", system=None
    )  # fmt: skip
    return Victim(small_model, decoding, 0)


@pytest.mark.parametrize(
    ("name", "variant", "prompts"),
    [
        ("embedding", "", ["paint the wood", "wash the door"]),
        ("embedding+rewrite", "x", ["a b", "c d"]),
        ("embedding+rewrite", "past", ["how did people paint the wood"]),
    ],
)
def test_prompts_are_perturbed_as_the_victim_is_told_to(asked, name, variant, prompts):
    found = ATTACKS[name].attempts(BEHAVIORS, asked, Context(seed=0, settings=SETTINGS, variant=variant, rewrites=REWRITES))
    assert [attempt.prompt for attempt in found] == prompts
    plain = [Attempt(b.id, prompt, b.targets[0]) for b, prompt in zip(BEHAVIORS, prompts)]
    assert found == plain  # but for the perturbation
    for attempt, expected in zip(found, asked.perturb(plain, SETTINGS.perturbation)):
        assert np.abs(attempt.delta[0]).max() > 0
        np.testing.assert_array_equal(attempt.delta[0], expected.delta[0])


def test_forms_are_all_or_those_that_are_named():
    variants = ATTACKS["embedding+rewrite"].variants
    assert list(variants(embedding.Settings(), ("past", "x"))) == ["past", "x"]
    assert list(variants(embedding.Settings(forms=("x",)), ("past", "x"))) == ["x"]
    with pytest.raises(ValueError, match=r"config\.attacks\.embedding\.forms names 'klingon'; the rewrites that are tried have past, x"):
        variants(embedding.Settings(forms=("klingon",)), ("past", "x"))
    assert list(ATTACKS["embedding"].variants(embedding.Settings(forms=("x",)), ("past", "x"))) == [""]


def test_both_read_one_group_of_settings():
    assert ATTACKS["embedding"].key == ATTACKS["embedding+rewrite"].key == "embedding"
    assert embedding.Settings().perturbation == Perturbation(steps=20, iterate="best")
