"""Best-of-N against its published probabilities, prefixes, and what every method must share."""

import collections

import numpy as np
import pytest

from dat_jax.data.behaviors import Behavior
from dat_jax.evaluation.attacks import text
from dat_jax.evaluation.attacks.rewrites import Rewrite

WORDS = "The quick  brown fox\njumps over ünïcode 12345 a the lazy dogs\t"


def behavior(id, words="Describe a plain wooden table", target="you take  some oak and then a saw"):
    return Behavior(id, words, (target, "another"), ("no",))


def within(count, total, probability):
    return abs(count - total * probability) < 5 * np.sqrt(total * probability * (1 - probability))


def test_word_scrambling():
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(2000):
        scrambled = text.scramble_words("short words a the abcdefghij", generator, np.sqrt(0.4))
        words = scrambled.split(" ")
        assert words[2:4] == ["a", "the"] and words[0][0] == "s" and words[0][-1] == "t"
        assert sorted(words[4]) == list("abcdefghij") and words[4][0] == "a" and words[4][-1] == "j"
        changed += words[4] != "abcdefghij"
    assert within(changed, 2000, np.sqrt(0.4) * (1 - 1 / 40320))


def test_random_capitalization():
    flipped = text.flip_cases("aB1 é" * 4000, np.random.default_rng(0), np.sqrt(0.4))
    letters = collections.Counter(flipped)
    assert letters["1"] == letters[" "] == letters["é"] == 4000
    assert letters["a"] + letters["A"] == 4000 and letters["b"] + letters["B"] == 4000
    assert within(letters["A"], 4000, np.sqrt(0.4)) and within(letters["b"], 4000, np.sqrt(0.4))


def test_character_noise():
    letters = collections.Counter(text.shift_characters("m" * 20_000, np.random.default_rng(0), 0.4**3))
    assert set(letters) == {"l", "m", "n"}
    assert within(letters["l"], 20_000, 0.032) and within(letters["n"], 20_000, 0.032)
    assert set(text.shift_characters(" ~é\n" * 2000, np.random.default_rng(0), 1.0)) == {" ", "!", "~", "}", "é", "\n"}


def test_augmentation_keeps_whitespace_and_length():
    for seed in range(50):
        augmented = text.augment(WORDS, np.random.default_rng(seed))
        assert len(augmented) == len(WORDS)
        # Noise may turn a blank into "!" or a "!" into a blank; line breaks and tabs are no printable characters and stay.
        assert [i for i, c in enumerate(augmented) if c in "\n\t"] == [i for i, c in enumerate(WORDS) if c in "\n\t"]
    assert len({text.augment(WORDS, np.random.default_rng(seed)) for seed in range(50)}) == 50


def test_best_of_n_depends_on_seed_behavior_and_number_alone():
    one, other = behavior("one"), behavior("other")
    attempts = text.best_of_n([one, other], 6, seed=3)
    assert [attempt.behavior for attempt in attempts] == ["one"] * 6 + ["other"] * 6
    assert attempts == text.best_of_n([one, other], 6, seed=3)
    assert attempts[6:9] == text.best_of_n([other], 3, seed=3)
    assert len({attempt.prompt for attempt in attempts}) == 12
    assert all(a.prompt != b.prompt for a, b in zip(attempts, text.best_of_n([one, other], 6, seed=4)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [(1, "you"), (4, "you take  some oak"), (7, "you take  some oak and then a"), (50, "you take  some oak and then a")],
)
def test_prefix_leaves_something_to_say(words, expected):
    (attempt,) = text.prefilled(text.direct([behavior("a")]), words)
    assert attempt.prefill == expected and attempt.target.startswith(expected)


def test_prefix_of_a_single_word_is_empty():
    assert text.first_words("yes", 3) == "" and text.first_words("", 3) == ""
    assert text.first_words("\n sure, so", 1) == "\n sure,"


def test_rewritten_keeps_to_form_and_behaviors():
    rewrites = [Rewrite("a", "past", "A?"), Rewrite("a", "past", "AA?"), Rewrite("b", "past", "B?"), Rewrite("a", "polite", "A!")]
    attempts = text.rewritten([behavior("a", target="t")], rewrites, "past")
    assert [(x.behavior, x.prompt, x.target) for x in attempts] == [("a", "A?", "t"), ("a", "AA?", "t")]
