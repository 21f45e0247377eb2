"""The latent attack: what it perturbs and where, what it can and cannot make a model say, and sites that a model does not have."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.attacks import ATTACKS, embedding, latent, victim
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data import conversations
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.models import transformer
from dat_jax.settings import validate
from dat_jax.training.perturbation import Perturbation

NEW = 5
BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("a b", "c"), ("no",))]
REWRITES = [Rewrite("1", "past", "how did people paint the wood"), Rewrite("2", "x", "c d"), Rewrite("1", "x", "a b")]
STRONG = Perturbation(steps=8, radius=2.0, iterate="best", sites=(1,))
PLAIN = [Attempt("1", "paint the wood", "with a brush"), Attempt("2", "how did people wash a door", "z y"), Attempt("3", "a", "b c d")]


def asked(model, batch_size=3, mesh=None):
    how = Decoding(
        prompt_length=16, response_length=6, max_new_tokens=NEW, batch_size=batch_size, temperature=0.0, perturb="user", system=None
    )
    return Victim(model, how, 0, mesh)


hidden = jax.jit(transformer.hidden, static_argnames="config")


def alone(model, attempt):
    """Greedy decoding of one attempt by itself without a cache, the perturbation added by `transformer.hidden` in every pass."""
    tokenizer = model.tokenizer
    tokens, _ = conversations.encode_prompt(tokenizer, [{"role": "user", "content": attempt.prompt}], "user")
    add = {site: jnp.asarray(delta_PxD)[None, -len(tokens) :] for site, delta_PxD in (attempt.delta or {}).items()}
    rows_VxD, new = np.asarray(model.params["embedding"]), []
    e_TxD = np.zeros((24, model.config.width), np.float32)
    e_TxD[: len(tokens)] = rows_VxD[tokens]
    for length in range(len(tokens), len(tokens) + NEW):
        h_1xTxD = hidden(model.params, model.config, e_TxD[None], (jnp.arange(24) < length)[None], add=add)
        new.append(int(np.argmax(transformer.head(model.params, model.config, h_1xTxD[0, length - 1]))))
        if new[-1] == tokenizer.eos_token_id:
            new.pop()
            break
        e_TxD[length] = rows_VxD[new[-1]]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("name", "variant", "prompts", "sites"),
    [
        ("latent", "", ["paint the wood", "wash the door"], (1,)),
        ("latent+rewrite", "x", ["a b", "c d"], (1,)),
        ("latent+rewrite", "past", ["how did people paint the wood"], (1,)),
        ("latent_site", "0", ["paint the wood", "wash the door"], (0,)),
        ("latent_site", "1", ["paint the wood", "wash the door"], (1,)),
    ],
)
def test_prompts_are_perturbed_as_the_victim_is_told_to(small_model, name, variant, prompts, sites):
    how, model = Perturbation(steps=2, radius=0.5, sites=(1,)), asked(small_model)
    found = ATTACKS[name].attempts(BEHAVIORS, model, Context(0, latent.Settings(how), variant, REWRITES))
    plain = [Attempt(b.id, prompt, b.targets[0]) for b, prompt in zip(BEHAVIORS, prompts)]
    assert found == plain  # but for the perturbation
    for attempt, expected in zip(found, model.perturb(plain, dataclasses.replace(how, sites=sites))):
        assert tuple(attempt.delta) == sites and np.abs(attempt.delta[sites[0]]).max() > 0
        jax.tree.map(np.testing.assert_array_equal, attempt.delta, expected.delta)


def test_variants_settings_and_surface():
    settings = latent.Settings(sites_tried=(0, 1, 5))
    assert {ATTACKS[name].key for name in ("latent", "latent+rewrite", "latent_site")} == {"latent"}
    assert {ATTACKS[name].surface for name in ("latent", "latent+rewrite", "latent_site")} == {"latent"}
    assert ATTACKS["latent_site"].variants(settings, ("past",)) == ["0", "1", "5"]
    assert ATTACKS["latent_site"].curve == "site of the perturbation" and not ATTACKS["latent"].curve
    assert ATTACKS["latent"].variants(settings, ("past",)) == ("",)
    assert settings.perturbation == Perturbation(steps=20, iterate="best", sites=(1,))
    forms = ATTACKS["latent+rewrite"].variants
    assert list(forms(settings, ("past", "x"))) == ["past", "x"] and list(forms(latent.Settings(forms=("x",)), ("past", "x"))) == ["x"]
    with pytest.raises(ValueError, match=r"config\.attacks\.latent\.forms names 'klingon'; the rewrites that are tried have past, x"):
        forms(latent.Settings(forms=("klingon",)), ("past", "x"))


@pytest.mark.parametrize("sites", [(0,), (1,), (0, 1)])
def test_the_answer_is_decoded_from_the_perturbed_stream(small_model, sites):
    model = asked(small_model)
    perturbed = model.perturb(PLAIN, dataclasses.replace(STRONG, sites=sites))
    texts = model.answer(perturbed)
    assert texts == [alone(small_model, attempt) for attempt in perturbed]
    assert texts != model.answer(PLAIN)


def test_a_batch_may_mix_sites(small_model):
    model = asked(small_model)
    mixed = [model.perturb(PLAIN, dataclasses.replace(STRONG, sites=sites))[row] for row, sites in enumerate([(0,), (1,)])] + PLAIN[2:]
    assert model.answer(mixed) == [alone(small_model, attempt) for attempt in mixed]


def test_a_wide_ball_inside_the_model_lets_the_attack_say_the_target(small_model):
    """The counterpart of the next test: with all of the room it asks for, the attack must succeed.

    One layer is left above the site, and it sees directions alone; steps of the gradient's own direction find what sign steps jump over.
    """
    plain = [Attempt(str(i), "how did people paint the wood", target) for i, target in enumerate(("x y", "b wash", "the"))]
    wide = Perturbation(steps=150, radius=6.0, step_size=0.05, optimizer="normalized", iterate="best", sites=(1,))
    model = asked(small_model)
    assert model.answer(model.perturb(plain, wide)) == [attempt.target for attempt in plain]


@pytest.mark.parametrize("nothing", [{"radius": 0.0}, {"steps": 0}])
def test_without_room_or_steps_nothing_changes(small_model, nothing):
    model = asked(small_model)
    found = model.perturb(PLAIN, dataclasses.replace(STRONG, **nothing))
    assert not any(np.any(attempt.delta[1]) for attempt in found)
    assert model.answer(found) == model.answer(PLAIN)


def test_only_the_users_words_are_perturbed(small_model):
    for attempt, words in zip(asked(small_model).perturb(PLAIN, dataclasses.replace(STRONG, sites=(0, 1))), (3, 6, 1)):
        for site in (0, 1):
            places = np.flatnonzero(np.linalg.norm(attempt.delta[site], axis=-1))
            assert places.tolist() == list(range(16 - 2 - words, 16 - 2))  # before the end of the turn and the assistant's tag


def test_a_mesh_gives_the_same(small_model):
    plain, how = [*PLAIN, Attempt("4", "wash", "b")], dataclasses.replace(STRONG, steps=4, optimizer="normalized", sites=(0, 1))
    mesh = sharding.make_mesh(2, 2, 1)
    with jax.set_mesh(mesh):
        spread = asked(small_model, 4, mesh)
        found = spread.perturb(plain, how)
        texts = spread.answer(found)
    for attempt, expected in zip(found, asked(small_model, 4).perturb(plain, how)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), attempt.delta, expected.delta)
    assert texts == asked(small_model, 4).answer(found)


@pytest.mark.parametrize(
    ("name", "variant", "settings", "key"),
    [
        ("latent", "", latent.Settings(Perturbation(sites=(1, 2))), "perturbation.sites"),
        ("latent+rewrite", "x", latent.Settings(Perturbation(sites=(2,))), "perturbation.sites"),
        ("latent_site", "2", latent.Settings(sites_tried=(0, 2)), "sites_tried"),
    ],
)
def test_a_site_that_the_model_lacks_is_named_before_the_search(small_model, monkeypatch, name, variant, settings, key):
    monkeypatch.setattr(victim, "perturbation", lambda *_: pytest.fail("something was computed"))
    validate(settings, "attacks.latent")
    with pytest.raises(ValueError, match=rf"^config\.attacks\.latent\.{key} names site 2; allowed for a model of 2 layers: 0 to 1$"):
        ATTACKS[name].attempts(BEHAVIORS, asked(small_model), Context(0, settings, variant, REWRITES))


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (latent.Settings(sites_tried=()), "sites_tried"),
        (latent.Settings(sites_tried=(0, -1)), "sites_tried"),
        (latent.Settings(Perturbation(sites=(1, 1))), r"perturbation\.sites"),
        (latent.Settings(Perturbation(narrowest=0.5, sites=(1,))), r"perturbation\.narrowest"),
        (embedding.Settings(Perturbation(sites=(1,))), r"perturbation\.sites"),  # it would be counted for another surface
    ],
)
def test_settings_that_cannot_be(bad, key):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{key} is"):
        validate(bad, "attacks.x")


def test_the_site_of_the_curve_replaces_the_settings_sites():
    noted = []
    model = types.SimpleNamespace(
        model=types.SimpleNamespace(config=types.SimpleNamespace(layers=9)), perturb=lambda a, how: noted.append(how)
    )
    settings = latent.Settings(Perturbation(steps=3, sites=(1, 4)), sites_tried=(0, 7))
    ATTACKS["latent_site"].attempts(BEHAVIORS, model, Context(0, settings, "7"))
    assert noted == [dataclasses.replace(settings.perturbation, sites=(7,))] and len(requests(BEHAVIORS)) == 2
