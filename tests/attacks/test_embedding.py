"""The embedding attack: what it perturbs, alone and on top of rewrites, and on top of which of them."""

import dataclasses
import types

import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, embedding, embedding_step_sizes, embedding_unbounded
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.settings import validate
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


def test_the_best_of_several_step_sizes_is_as_good_as_each(asked):
    """Steps too short to get anywhere hold a model up that another size breaks; in a ball that is too small none does."""
    behaviors = [Behavior("1", "paint the wood", ("x y",), ("no",)), Behavior("2", "wash the door", ("b wash",), ("no",))]
    how = Perturbation(steps=120, radius=6.0, iterate="best")

    def said(**changes):
        settings = embedding_step_sizes.Settings(how, **({"step_sizes": (1e-6, 0.05), "restarts": 1} | changes))
        found = ATTACKS["embedding_step_sizes"].attempts(behaviors, asked, Context(0, settings))
        texts = asked.answer(found)
        both = {b.id: [text for attempt, text in zip(found, texts) if attempt.behavior == b.id] for b in behaviors}
        return found, both, {b.id for b in behaviors if any(text.startswith(b.targets[0]) for text in both[b.id])}

    short, long, several = said(step_sizes=(1e-6,)), said(step_sizes=(0.05,)), said()
    assert [attempt.behavior for attempt in several[0]] == ["1", "1", "2", "2"] and not any(attempt.target_eot for attempt in several[0])
    assert short[2] == set() and long[2] == {"1", "2"} == several[2] and several[2] >= short[2] | long[2]
    for alone, place in ((short, 0), (long, 1)):  # each is what it is without the other
        for attempt, same in zip(alone[0], several[0][place::2]):
            np.testing.assert_array_equal(attempt.delta[0], same.delta[0])
    plain = asked.answer([Attempt(b.id, b.text, b.targets[0]) for b in behaviors])
    _, texts, broken = said(radii=(1e-6,), restarts=2)
    assert broken == set() and [texts["1"], texts["2"]] == [[text] * 4 for text in plain]


def test_every_combination_is_tried():
    settings = embedding_step_sizes.Settings(step_sizes=(0.1, 0.2), optimizers=("sign", "adam"), radii=(0.5, 1.0), restarts=2)
    found = list(embedding_step_sizes.searches(settings))
    assert len(set(found)) == len(found) == 16
    assert {(how.optimizer, how.radius, how.step_size, n) for how, n in found} >= {("adam", 0.5, 0.2, 1), ("sign", 1.0, 0.1, 0)}
    default = list(embedding_step_sizes.searches(embedding_step_sizes.Settings()))
    assert {how.radius for how, _ in default} == {1.0} and {restart for _, restart in default} == {0, 1}


def test_the_path_without_a_bound_is_answered_from_several_of_its_points(asked):
    """Signed steps of a fixed length on the suffix alone, as by hand; the parts of a path are the path."""
    settings = embedding_unbounded.Settings(steps=6, step_size=0.5, generations=3, suffix="a b")
    found = ATTACKS["embedding_unbounded"].attempts(BEHAVIORS, asked, Context(0, settings))
    assert [attempt.behavior for attempt in found] == ["1"] * 3 + ["2"] * 3 and not any(attempt.target_eot for attempt in found)
    for attempt in found:
        moved = attempt.delta[0][np.abs(attempt.delta[0]).max(axis=-1) > 0] / 0.5
        assert len(moved) == 2  # tokens of the suffix
        np.testing.assert_allclose(moved, np.round(moved), atol=1e-5)
    for number, steps in enumerate((2, 4, 6)):  # every coordinate went up or down by 0.5 in every step
        moved = np.abs(found[number].delta[0]).max() / 0.5
        assert moved <= steps + 1e-5 and round(moved) % 2 == 0
    assert np.abs(found[2].delta[0]).max() > 2.5  # far beyond a mean embedding norm: nothing holds it back
    plain = [dataclasses.replace(attempt, delta=None) for attempt in found[2::3]]
    for attempt, expected in zip(found[2::3], asked.perturb(plain, dataclasses.replace(embedding_unbounded.part(settings), steps=6))):
        np.testing.assert_allclose(attempt.delta[0], expected.delta[0], atol=1e-6)
    behaviors = [Behavior("1", "paint the wood", ("x y",), ("no",)), Behavior("2", "wash the door", ("b wash",), ("no",))]
    for size, broken in ((0.05, {"1", "2"}), (1e-9, set())):  # it succeeds where it may move, and with steps of no length it does not
        tries = dataclasses.replace(settings, steps=80, step_size=size, generations=40, suffix="a b c d e")
        found = ATTACKS["embedding_unbounded"].attempts(behaviors, asked, Context(0, tries))
        said = zip(found, asked.answer(found))
        assert {attempt.behavior for attempt, text in said if text.startswith(attempt.target)} == broken
    with pytest.raises(ValueError, match=r"config\.attacks\.x\.steps is 5; allowed: a multiple of generations \(3\) above 0"):
        validate(dataclasses.replace(settings, steps=5), "attacks.x")
    with pytest.raises(ValueError, match=r"config\.attacks\.x\.generations is 0"):
        validate(dataclasses.replace(settings, generations=0), "attacks.x")


@pytest.mark.parametrize("name", ["embedding", "embedding_steps", "embedding_suffix", "embedding_unbounded", "embedding_prefill", "latent"])
def test_the_end_of_the_turn_can_be_left_out_of_every_target(name):
    class Remembering:
        model = types.SimpleNamespace(config=types.SimpleNamespace(layers=4))

        def perturb(self, attempts, how, restart=0, onward=False):
            return attempts

    for chosen in (True, False):
        settings = ATTACKS[name].settings(target_eot=chosen)
        variant = (list(ATTACKS[name].variants(settings, ())) or [""])[0]
        found = ATTACKS[name].attempts(BEHAVIORS, Remembering(), Context(0, settings, variant))
        assert [attempt.target_eot for attempt in found] == [chosen] * len(found) and {a.behavior for a in found} == {"1", "2"}


@pytest.mark.parametrize(
    "bad", [{"step_sizes": ()}, {"step_sizes": (0.1, 0.0)}, {"optimizers": ("sgd",)}, {"radii": (-1.0,)}, {"restarts": 0}]
)
def test_combinations_that_cannot_be(bad):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{next(iter(bad))} is"):
        validate(embedding_step_sizes.Settings(**bad), "attacks.x")


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
