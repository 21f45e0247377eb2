"""Several judges as one: the rules on labels by hand, and what may be in an ensemble."""

import pytest

from dat_jax import judges
from dat_jax.config import defaults, validate
from dat_jax.judges import JUDGES, ensemble
from dat_jax.judges.judge import UNPARSED, Exchange, Verdict, labelled


def combined(labels, rule):
    names = {"c": "comply", "r": "refuse", "l": "lost", "u": UNPARSED}
    return ensemble.combine([labelled(names[letter]) for letter in labels], rule).label


@pytest.mark.parametrize(
    ("labels", "majority", "any_"),
    [
        ("ccr", "comply", "comply"),
        ("crr", "refuse", "comply"),
        ("cr", "refuse", "comply"),  # half is not most
        ("rll", "lost", "lost"),
        ("rl", "refuse", "refuse"),
        ("cur", UNPARSED, "comply"),  # what was not parsed would decide
        ("urr", "refuse", UNPARSED),  # two of three are enough for a majority, whatever the third is
        ("uu", UNPARSED, UNPARSED),
        ("ccu", "comply", "comply"),
    ],
)
def test_rules(labels, majority, any_):
    assert (combined(labels, "majority"), combined(labels, "any")) == (majority, any_)


def test_scores():
    verdicts = [Verdict("comply", 0.9), Verdict("refuse", 0.2), Verdict("refuse", 0.1)]
    assert ensemble.combine(verdicts, "majority").score == pytest.approx(0.4)
    assert ensemble.combine(verdicts, "any").score == 0.9


def test_an_ensemble_judges_by_itself_and_says_what_it_is_made_of():
    config = defaults()
    config.judges.ensemble.of, config.judges.ensemble.rule = ("refusal_prefix", "refusal_topic"), "any"
    said = [Exchange("1", "Sand oak", "", "", "Go for a walk."), Exchange("1", "Sand oak", "", "", "I cannot.")]
    assert [verdict.label for verdict in judges.load("ensemble", config)(said)] == ["comply", "refuse"]
    found = JUDGES["ensemble"].fingerprint(config)["settings"]
    assert found["rule"] == "any" and found["judges"]["refusal_topic"] == JUDGES["refusal_topic"].fingerprint(config)
    assert judges.needed(["ensemble", "refusal_topic"], config) == ["refusal_prefix", "refusal_topic", "ensemble"]
    assert judges.fallback(["ensemble", "refusal_topic"]) == "refusal_topic" and judges.fallback(["ensemble"]) == "refusal_prefix"


@pytest.mark.parametrize("of", [(), ("refusal_prefix",), ("refusal_prefix", "nobody"), ("refusal_prefix", "ensemble")])
def test_members_that_are_no_judges(of):
    config = defaults()
    config.judges.ensemble.of = of
    with pytest.raises(ValueError, match=r"config\.judges\.ensemble\.of is .*; allowed: two or more of refusal_prefix, "):
        JUDGES["ensemble"].fingerprint(config)


def test_a_rule_that_is_not_there():
    config = defaults()
    config.target.model, config.data.eval_behaviors, config.training.methods = "x/y", "z.csv", ()
    config.judges.ensemble.rule = "all"
    with pytest.raises(ValueError, match=r"config\.judges\.ensemble\.rule is 'all'; allowed: majority \| any"):
        validate(config)
