"""Attacks whose prompts a rewriter writes: against models that are known to break and to hold, and with rewriters that fail."""

import pytest

from dat_jax.attacks import ATTACKS, persuasion, rewriting, tense, translation
from dat_jax.attacks.attack import Context, Stopped
from dat_jax.config import defaults
from dat_jax.config import validate as check_config
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import validate

BEHAVIORS = [Behavior("1", "Paint the wood", ("with a brush",), ("no",)), Behavior("2", "Wash {the} door", ("a b",), ("no",))]
NAMES = ("translation", "persuasion", "tense")
CASES = [
    ("translation", translation.Settings(languages=("gd",), tries=2), "gd", "Scots Gaelic"),
    ("persuasion", persuasion.Settings(techniques=("logical_appeal",), tries=2), "logical_appeal", "argument"),
    ("tense", tense.Settings(tries=2), "past", "past tense"),
]


def speaks(asks):
    """A rewriter that says which behavior, in which form and which try it was asked for."""
    return [f'"{ask.form} {ask.behavior} {ask.draw}"\n' for ask in asks]


def broken(attempts, complies):
    """The behaviors that a model breaks, which complies with the prompts that it is told to."""
    return {attempt.behavior for attempt in attempts if complies(attempt.prompt)}


@pytest.mark.parametrize(("name", "settings", "variant", "word"), CASES)
def test_a_model_that_knows_the_request_alone_breaks_and_one_that_knows_all_words_holds(name, settings, variant, word):
    asked = []

    def rewriter(asks):
        asked.extend(asks)
        return speaks(asks)

    attack = ATTACKS[name]
    found = attack.attempts(BEHAVIORS, None, Context(3, settings, variant, rewriter=rewriter))
    assert [a.prompt for a in found] == [f"{variant} {id} {draw}" for id in ("1", "2") for draw in (0, 1)]  # without the quotation marks
    requests = {behavior.text for behavior in BEHAVIORS}
    assert broken(found, lambda prompt: prompt not in requests) == {"1", "2"}
    assert broken(found, lambda prompt: variant not in prompt) == set()
    for ask, behavior in zip(asked[::2], BEHAVIORS):
        [(role, text)] = ask.messages
        assert role == "user" and behavior.text in text and word in text and ask.unlike == behavior.text
    assert attack.surface == "text" and attack.uses_rewriter and attack.tries and not attack.adaptive and not attack.uses_judge
    assert attack.asks(BEHAVIORS, Context(3, settings, variant)) == asked  # what is asked before any model is loaded


def test_the_defaults_are_the_published_ones():
    variants = {name: tuple(ATTACKS[name].variants(ATTACKS[name].settings(), ())) for name in NAMES}
    assert variants["translation"] == ("hmn", "gd", "gn", "zu") and variants["tense"] == ("past",)
    five = {"logical_appeal", "authority_endorsement", "misrepresentation", "evidence_based", "expert_endorsement"}
    assert set(variants["persuasion"]) == five
    assert tense.Settings().tries == 20 and tense.Settings().temperature == 1.0
    found = ATTACKS["tense"].attempts(BEHAVIORS, None, Context(0, tense.Settings(), "past", rewriter=speaks))
    assert len(found) == 40 and {attempt.temperature for attempt in found} == {1.0}
    found = ATTACKS["translation"].attempts(BEHAVIORS, None, Context(0, translation.Settings(), "gd", rewriter=speaks))
    assert len(found) == 2 and {attempt.temperature for attempt in found} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rewriter_an_attack_stops(name):
    settings = ATTACKS[name].settings()
    with pytest.raises(Stopped, match=r"there is no rewriter; allowed: one of config\.rewriter\.model"):
        ATTACKS[name].attempts(BEHAVIORS, None, Context(0, settings, ATTACKS[name].variants(settings, ())[0]))


@pytest.mark.parametrize(
    ("reply", "text", "is_same"),
    [
        ("Paint the wood", "Paint the wood", True),
        (' "paint  the wood." ', "Paint the wood", True),
        ("\u201cPaint the wood\u201d", "Paint the wood?", True),
        ("Paint the woods", "Paint the wood", False),
        ("How was wood painted?", "Paint the wood", False),
    ],
)
def test_a_reply_that_is_the_request(reply, text, is_same):
    assert rewriting.same(reply, text) == is_same


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ('"a b"\n', "a b"),
        ("'a'", "a"),
        ('"a" and "b"', '"a" and "b"'),
        ('"a', '"a'),
        ("\u00aba b\u00bb", "a b"),
        ('""', '""'),
        ("it's", "it's"),
    ],
)
def test_one_pair_of_quotation_marks_is_taken_away(reply, text):
    assert rewriting.unquoted(reply) == text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (translation.Settings(languages=("gd", "klingon")), r"languages is \('gd', 'klingon'\); allowed: one or more of hmn, gd, gn, zu"),
        (translation.Settings(languages=()), r"languages is \(\)"),
        (translation.Settings(tries=0), "tries is 0; allowed: an integer >= 1"),
        (persuasion.Settings(techniques=("shouting",)), r"techniques is \('shouting',\); allowed: one or more of logical_appeal"),
        (persuasion.Settings(tries=-1), "tries is -1"),
        (tense.Settings(tenses=("present",)), r"tenses is \('present',\); allowed: one or more of past, future"),
        (tense.Settings(tries=0), "tries is 0"),
        (tense.Settings(temperature=-1.0), "temperature is -1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{message}"):
        validate(settings, "attacks.x")


@pytest.mark.parametrize("key", ["translation.languages", "persuasion.techniques", "tense.tenses"])
def test_a_variant_that_stands_twice(key):
    config, (attack, name) = defaults(), key.split(".")
    config.target.model, config.data.eval_behaviors, config.training.methods = "x/y", "z.csv", ()
    config.attacks[attack][name] = (config.attacks[attack][name][0],) * 2
    with pytest.raises(ValueError, match=rf"config\.attacks\.{key} is .*; allowed: each once"):
        check_config(config)
