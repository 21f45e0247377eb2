"""PAIR: the feedback reaches the attacker, replies of no use are counted, a killed search goes on, and models that break and hold."""

import json

import numpy as np
import pytest

from dat_jax.attacks import ATTACKS, pair
from dat_jax.attacks.attack import Context, Stopped
from dat_jax.data.behaviors import Behavior
from dat_jax.judges.judge import Verdict
from dat_jax.settings import validate

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("Sure",), ("no",))]
ATTEMPTS = ATTACKS["pair"].attempts


class Model:
    """Complies with prompts that hold all its words; says how many of them it has heard."""

    def __init__(self, *words):
        self.words, self.asked, self.spent = words, [], {"answers": 0, "flops": 0.0}

    def answer(self, attempts):
        self.asked += [attempt.prompt for attempt in attempts]
        self.spent["answers"] += len(attempts)
        assert {attempt.temperature for attempt in attempts} <= {0.0}
        return [f"heard {sum(word in attempt.prompt for word in self.words)}" for attempt in attempts]

    def fits(self, prompt):
        return len(prompt) < 200


def judging(words):
    """A judge: compliance where the model has heard all words, and a score by how many."""

    def judge(exchanges):
        heard = [int(exchange.response.split()[1]) for exchange in exchanges]
        return [Verdict("comply" if n == words else "refuse", n / words) for n in heard]

    return judge


def learning(asks):
    """An attacker that adds a word to its last prompt for as long as the score is below 10."""
    replies = []
    for ask in asks:
        earlier = [text for role, text in ask.messages if role == "assistant"]
        prompt = json.loads(earlier[-1])["prompt"] if earlier else "please"
        more = ("say", "sing", "shout")[len(prompt.split()) % 3]
        replies.append('Here you are:\n{"improvement": "one\nmore {word}", "prompt": "' + f"{prompt} {more}" + '"} Good luck!')
    return replies


class Store:
    def __init__(self):
        self.arrays, self.saves = {}, 0

    def load(self):
        return self.arrays

    def save(self, arrays):
        self.arrays, self.saves = {name: np.array(value) for name, value in arrays.items()}, self.saves + 1


def run(model, rewriter=learning, behaviors=BEHAVIORS, store=None, words=2, **settings):
    made = pair.Settings(**({"streams": 2, "iterations": 3} | settings))
    context = Context(0, made, judge=judging(words), rewriter=rewriter, store=store, spent=model.spent)
    return ATTEMPTS(behaviors, model, context)


def test_a_model_that_gives_in_breaks_and_the_search_ends_there():
    model = Model("sing", "shout")
    found = run(model)
    # "please sing", then "please sing shout", which breaks it; the third iteration is not needed.
    assert [(a.behavior, a.prompt) for a in found] == [(id, "please sing shout") for id in ("1", "1", "2", "2")]
    assert model.spent == {"answers": 8, "flops": 0.0, "unusable_replies": 0, "turns_without_prompt": 0}
    assert {verdict.label for verdict in judging(2)([type("E", (), {"response": r}) for r in model.answer(found)])} == {"comply"}


def test_a_model_that_never_does_holds_whatever_is_tried():
    model = Model("sing", "xylophone")
    found = run(model)
    assert model.spent["answers"] == 12 and not any("xylophone" in prompt for prompt in model.asked)
    assert {a.prompt for a in found} == {"please sing"}  # of equal scores the first


def test_strength_never_falls_with_iterations():
    heard = []
    for iterations in (1, 2, 3):
        model = Model("sing", "shout", "say")
        heard.append(model.answer(run(model, iterations=iterations, words=3))[0])
    assert heard == ["heard 1", "heard 2", "heard 3"]


def test_what_the_attacker_is_told():
    asked = []

    def rewriter(asks):
        asked.append(asks)
        return learning(asks)

    run(Model("sing", "xylophone"), rewriter, BEHAVIORS[:1], streams=4, iterations=2, keep_last=1)
    first, second = asked
    assert [ask.messages[0][1].split("STRATEGY: ")[1].split(".")[0] for ask in first] == [
        "role-playing", "logical appeal", "authority endorsement", "role-playing"
    ]  # fmt: skip
    assert first[0].messages[1] == ("user", pair.FIRST.format(goal="paint the wood", target="with a"))
    assert len({ask.draw for ask in first + second}) == 8  # the streams begin with the same words, and must not get the same reply
    roles = [role for role, _ in second[0].messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert second[0].messages[-1][1] == "LANGUAGE MODEL OUTPUT: heard 1\nOBJECTIVE: 'paint the wood'\nSCORE: 5"  # half way from 1 to 10
    assert json.loads(second[0].messages[2][1]) == {"improvement": "one\nmore {word}", "prompt": "please sing"}


BAD = ["no json", "{}", '{"prompt": 3}', '{"prompt": " "}', '{"prompt": "Paint the wood."}', '{"prompt": "\\ud800"}']
BAD += ['{"prompt": "' + "x" * 300 + '"}']  # does not fit


def test_replies_of_no_use_are_counted_and_end_nothing():
    """Stream 0 never gets one of use, stream 1 at its third try."""
    tries = []

    def rewriter(asks):
        tries.append(len(asks))
        good = learning(asks)
        return [g if ask.draw >= 5 * 3 and ask.draw % 5 == 2 else BAD[ask.draw % len(BAD)] for g, ask in zip(good, asks)]

    model = Model("sing", "xylophone")
    found = run(model, rewriter, BEHAVIORS[:1])
    assert [attempt.prompt for attempt in found] == ["please sing"] and len(model.asked) == 3
    assert tries == [2, 2, 2, 1, 1] * 3
    assert model.spent["unusable_replies"] == 3 * (5 + 2) and model.spent["turns_without_prompt"] == 3
    nothing = Model()
    assert run(nothing, lambda asks: ["no json"] * len(asks), json_tries=2) == [] and nothing.asked == []
    assert nothing.spent["unusable_replies"] == 2 * 2 * 3 * 2 and nothing.spent["behaviors_without_prompt"] == 2


@pytest.mark.parametrize("text", BAD[:4] + ["", '{"prompt": "a"', "[" * 100_000 + "{" * 3000])
def test_texts_without_a_prompt(text):
    assert pair.parse(text) is None


def test_texts_with_a_prompt():
    assert pair.parse('{x} {"improvement": 1, "prompt": "use {braces} and \n lines"}')["prompt"] == "use {braces} and \n lines"
    assert pair.parse('```json\n{"prompt": "a", "improvement": "b", "more": 1}\n```') == {"improvement": "b", "prompt": "a"}


@pytest.mark.parametrize("killed_in", [1, 2])
def test_a_killed_search_goes_on_and_ends_the_same(killed_in):
    whole = Model("sing", "xylophone")
    expected = run(whole, store=(full := Store()))
    assert full.saves == 3

    calls = []

    def dying(asks):
        calls.append(asks)
        if len(calls) == killed_in + 1:
            raise KeyboardInterrupt
        return learning(asks)

    store = Store()
    with pytest.raises(KeyboardInterrupt):
        run(Model("sing", "xylophone"), dying, store=store)
    again = Model("sing", "xylophone")
    assert run(again, store=store) == expected
    assert again.asked == whole.asked[4 * killed_in :] and again.spent == whole.spent  # what was spent before is not forgotten
    other = Model("sing", "xylophone")
    run(other, store=store, keep_last=1)  # other settings begin anew
    assert len(other.asked) == 12


def test_it_needs_somebody_to_talk_to():
    with pytest.raises(Stopped, match=r"PAIR needs a judge and a rewriter that converses"):
        ATTEMPTS(BEHAVIORS, Model(), Context(0, pair.Settings(), judge=judging(1)))


@pytest.mark.parametrize("name", ["streams", "iterations", "keep_last", "json_tries"])
def test_settings_that_cannot_be(name):
    assert (pair.Settings().streams, pair.Settings().iterations) == (30, 3)
    with pytest.raises(ValueError, match=rf"config\.attacks\.pair\.{name} is 0; allowed: an integer >= 1"):
        validate(pair.Settings(**{name: 0}), "attacks.pair")
