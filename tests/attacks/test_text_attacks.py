"""Best-of-N against its published probabilities, prefixes, and what every method must share."""

import collections
import dataclasses

import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, best_of_n, direct, given, prefill
from dat_jax.attacks.attack import SURFACES, Context
from dat_jax.attacks.direct import requests
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite

WORDS = "The quick  brown fox\njumps over ünïcode 12345 a the lazy dogs\t"


def behavior(id, words="Describe a plain wooden table", target="you take  some oak and then a saw"):
    return Behavior(id, words, (target, "another"), ("no",))


def attack(name, behaviors, **context):
    """The attempts of a row of ATTACKS that looks at no model."""
    return ATTACKS[name].attempts(behaviors, None, Context(**({"seed": 0, "settings": ATTACKS[name].settings()} | context)))


def within(count, total, probability):
    return abs(count - total * probability) < 5 * np.sqrt(total * probability * (1 - probability))


def test_word_scrambling():
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(2000):
        scrambled = best_of_n.scramble_words("short words a the abcdefghij", generator, np.sqrt(0.4))
        words = scrambled.split(" ")
        assert words[2:4] == ["a", "the"] and words[0][0] == "s" and words[0][-1] == "t"
        assert sorted(words[4]) == list("abcdefghij") and words[4][0] == "a" and words[4][-1] == "j"
        changed += words[4] != "abcdefghij"
    assert within(changed, 2000, np.sqrt(0.4) * (1 - 1 / 40320))


def test_random_capitalization():
    flipped = best_of_n.flip_cases("aB1 é" * 4000, np.random.default_rng(0), np.sqrt(0.4))
    letters = collections.Counter(flipped)
    assert letters["1"] == letters[" "] == letters["é"] == 4000
    assert letters["a"] + letters["A"] == 4000 and letters["b"] + letters["B"] == 4000
    assert within(letters["A"], 4000, np.sqrt(0.4)) and within(letters["b"], 4000, np.sqrt(0.4))


def test_character_noise():
    letters = collections.Counter(best_of_n.shift_characters("m" * 20_000, np.random.default_rng(0), 0.4**3))
    assert set(letters) == {"l", "m", "n"}
    assert within(letters["l"], 20_000, 0.032) and within(letters["n"], 20_000, 0.032)
    assert set(best_of_n.shift_characters(" ~é\n" * 2000, np.random.default_rng(0), 1.0)) == {" ", "!", "~", "}", "é", "\n"}


def test_augmentation_keeps_whitespace_and_length():
    for seed in range(50):
        augmented = best_of_n.augment(WORDS, np.random.default_rng(seed))
        assert len(augmented) == len(WORDS)
        # Noise may turn a blank into "!" or a "!" into a blank; line breaks and tabs are no printable characters and stay.
        assert [i for i, c in enumerate(augmented) if c in "\n\t"] == [i for i, c in enumerate(WORDS) if c in "\n\t"]
    assert len({best_of_n.augment(WORDS, np.random.default_rng(seed)) for seed in range(50)}) == 50


def test_best_of_n_depends_on_seed_behavior_and_number_alone():
    def tries(behaviors, number, seed):
        return attack("best_of_n", behaviors, seed=seed, settings=best_of_n.Settings(attempts=number))

    one, other = behavior("one"), behavior("other")
    attempts = tries([one, other], 6, seed=3)
    assert [attempt.behavior for attempt in attempts] == ["one"] * 6 + ["other"] * 6
    assert attempts == tries([one, other], 6, seed=3)
    assert attempts[6:9] == tries([other], 3, seed=3)
    assert len({attempt.prompt for attempt in attempts}) == 12
    assert all(a.prompt != b.prompt for a, b in zip(attempts, tries([one, other], 6, seed=4)))


def test_best_of_n_augments_with_the_strength_that_is_set():
    (faint,) = attack("best_of_n", [behavior("one", "a" * 400)], settings=best_of_n.Settings(attempts=1, sigma=1e-9))
    (strong,) = attack("best_of_n", [behavior("one", "a" * 400)], settings=best_of_n.Settings(attempts=1, sigma=1.0))
    assert faint.prompt == "a" * 400
    assert set(strong.prompt) <= {"@", "B"}  # every letter is flipped, then shifted


@pytest.mark.parametrize(
    ("words", "expected"),
    [(1, "you"), (4, "you take  some oak"), (7, "you take  some oak and then a"), (50, "you take  some oak and then a")],
)
def test_prefix_leaves_something_to_say(words, expected):
    (attempt,) = attack("prefill", [behavior("a")], settings=prefill.Settings(words))
    assert attempt.prefill == expected and attempt.target.startswith(expected)


def test_prefix_of_a_single_word_is_empty():
    assert prefill.first_words("yes", 3) == "" and prefill.first_words("", 3) == ""
    assert prefill.first_words("\n sure, so", 1) == "\n sure,"


def test_rewrites_keep_to_form_and_behaviors():
    rewrites = [Rewrite("a", "past", "A?"), Rewrite("a", "past", "AA?"), Rewrite("b", "past", "B?"), Rewrite("a", "polite", "A!")]
    given = {"behaviors": [behavior("a", target="t w o")], "variant": "past", "rewrites": rewrites}
    assert [(x.behavior, x.prompt, x.target, x.prefill) for x in attack("rewrite", **given)] == [
        ("a", "A?", "t w o", ""),
        ("a", "AA?", "t w o", ""),
    ]
    begun = attack("prefill+rewrite", **given, settings=prefill.Settings(1))
    assert [(x.prompt, x.prefill) for x in begun] == [("A?", "t"), ("AA?", "t")]
    for name in ("rewrite", "prefill+rewrite", "embedding+rewrite", "latent+rewrite"):
        assert list(ATTACKS[name].variants(ATTACKS[name].settings(), ("past", "polite"))) == ["past", "polite"]


def test_a_request_is_asked_as_it_is_written():
    (attempt,) = attack("direct", [behavior("a")])
    assert (attempt.behavior, attempt.prompt, attempt.prefill) == ("a", "Describe a plain wooden table", "")
    assert [attempt] == requests([behavior("a")]) and attempt.target == behavior("a").targets[0]


def test_sampled_answers_are_asked_for_at_their_temperature():
    asked = attack("direct_samples", [behavior("a"), behavior("b")], settings=direct.Settings(answers=3, temperature=0.7))
    assert [(a.behavior, a.temperature) for a in asked] == [("a", 0.7)] * 3 + [("b", 0.7)] * 3
    assert {a.temperature for a in attack("best_of_n", [behavior("a")])} == {1.0}  # as published
    assert attack("direct", [behavior("a")])[0].temperature is None


def test_every_row_of_the_table_says_what_it_needs():
    assert list(ATTACKS)[:3] == ["direct", "direct_samples", "rewrite"]  # the order of the report: the weaker access first
    surfaces = [SURFACES.index(row.surface) for row in ATTACKS.values()]
    assert surfaces == sorted(surfaces)
    assert {row.name: row.surface for row in ATTACKS.values() if "+" in row.name} == {
        "prefill+rewrite": "prefill", "embedding+rewrite": "embedding", "embedding+text": "embedding", "latent+rewrite": "latent"
    }  # fmt: skip
    assert all(row.name == name and row.surface in SURFACES for name, row in ATTACKS.items())
    searching = {name for name in ATTACKS if name.startswith(("pair", "gcg", "infilling_adapted", "embedding", "latent"))}
    assert {name for name, row in ATTACKS.items() if row.adaptive} == searching
    assert {name for name, row in ATTACKS.items() if row.raises} == searching - {"pair", "infilling_adapted"}
    for row in ATTACKS.values():
        assert {field.name for field in dataclasses.fields(row.settings)} >= set(row.choices)
    steered = {name for name in ATTACKS if name.startswith(("pair", "gcg", "prefill", "embedding", "infilling", "latent"))}
    assert {name for name, row in ATTACKS.items() if row.uses_target} == steered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (best_of_n.Settings(attempts=0), r"config\.attacks\.x\.attempts is 0; allowed: an integer >= 1"),
        (best_of_n.Settings(sigma=1.5), r"config\.attacks\.x\.sigma is 1\.5; allowed: a number above 0 up to 1"),
        (prefill.Settings(words=0), r"config\.attacks\.x\.words is 0; allowed: an integer >= 1"),
        (best_of_n.Settings(temperature=-1.0), r"config\.attacks\.x\.temperature is -1\.0; allowed: a number >= 0"),
        (direct.Settings(temperature=0.0), r"config\.attacks\.x\.temperature is 0\.0; allowed: a number > 0"),
        (direct.Settings(answers=0), r"config\.attacks\.x\.answers is 0; allowed: an integer >= 1"),
        (given.Templates(count=-1), r"config\.attacks\.x\.count is -1; allowed: an integer >= 0"),
        (given.Infilling(samples=0), r"config\.attacks\.x\.samples is 0; allowed: an integer >= 1"),
        (given.Infilling(preset="16"), r"config\.attacks\.x\.preset is '16'; allowed: 64/64 \| 32/32 \| sampler"),
        (given.Replay(most=0), r"config\.attacks\.x\.most is 0; allowed: an integer >= 1"),
    ],
)
def test_a_bad_value_names_its_key(settings, message):
    type(settings)().validate("attacks.x")
    with pytest.raises(ValueError, match=message):
        settings.validate("attacks.x")
