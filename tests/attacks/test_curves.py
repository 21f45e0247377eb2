"""Attacks whose variants are points of a curve: over radius, steps, restarts and the words that are given."""

import dataclasses
import json
import types

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

from dat_jax.attacks import ATTACKS, embedding, embedding_prefill, embedding_search, embedding_suffix, prefill
from dat_jax.attacks.attack import Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import validate
from dat_jax.training.perturbation import Perturbation, mean_embedding_norm

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


def test_as_many_tokens_as_the_variant_says(small_model, tiny_job):
    attack, settings = ATTACKS["prefill_tokens"], prefill.Settings()
    assert attack.variants(settings, ()) == [str(k) for k in range(1, 21)] and attack.surface == "prefill" and attack.curve
    # Bytes, and four pairs of them that are one token: "th", "the", " b" and " br".
    words = tiny_job.tokenizer()
    inner = json.loads(words.backend_tokenizer.to_str())
    pairs = [("t", "h"), ("th", "e"), ("Ġ", "b"), ("Ġb", "r")]
    inner["model"]["vocab"] |= {a + b: 1000 + i for i, (a, b) in enumerate(pairs)}
    inner["model"]["merges"] = [list(pair) for pair in pairs]
    merged = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)), chat_template=words.chat_template, eos_token=words.eos_token
    )
    target = "the brush é"
    victim = types.SimpleNamespace(
        model=dataclasses.replace(small_model, tokenizer=merged), decoding=types.SimpleNamespace(system="be kind")
    )
    ids = merged(target, add_special_tokens=False)["input_ids"]
    assert len(ids) == 8  # the, _br, u, s, h, _, and é in two bytes

    def given(count, target=target):
        (found,) = attack.attempts([Behavior("1", "paint", (target,), ("no",))], victim, Context(0, settings, str(count)))
        return found.prefill

    assert [given(k) for k in range(1, 7)] == [merged.decode(ids[:k]) for k in range(1, 7)]
    assert given(2) == "the br" and all(merged(given(k), add_special_tokens=False)["input_ids"] == ids[:k] for k in range(1, 7))
    assert given(7) == given(20) == given(6)  # the seventh is half of the last character
    assert given(7, target + "a") == target and given(1, "a") == "" == given(3, "")


@pytest.fixture
def asked(small_model):
    how = Decoding(prompt_length=16, response_length=6, max_new_tokens=4, batch_size=2, temperature=0.0, perturb="user", system=None)
    return Victim(small_model, how, 0)


def norms(attempt):
    return np.linalg.norm(attempt.delta[0], axis=-1)


def test_as_many_steps_as_the_variant_says():
    attack, settings, victim = ATTACKS["embedding_steps"], embedding_search.Settings(steps=(1, 7)), Remembering()
    assert attack.variants(settings, ()) == ["1", "7"] and attack.curve
    attack.attempts(BEHAVIORS, victim, Context(0, settings, "7"))
    assert victim.how == dataclasses.replace(settings.perturbation, steps=7)


def test_restarts_are_attempts_of_their_own_and_the_first_ones_stay(asked):
    attack, how = ATTACKS["embedding_restarts"], Perturbation(steps=1, radius=0.5, step_size=0.1)
    settings = embedding_search.Settings(how, restarts=(1, 3))
    one, three = (attack.attempts(BEHAVIORS, asked, Context(0, settings, variant)) for variant in attack.variants(settings, ()))
    assert [attempt.behavior for attempt in three] == ["1", "1", "1", "2", "2", "2"]
    plain = asked.perturb(requests(BEHAVIORS), how)
    for single, same, expected in zip(one, three[::3], plain):
        np.testing.assert_array_equal(single.delta[0], same.delta[0])
        np.testing.assert_array_equal(single.delta[0], expected.delta[0])
    first, second, third = three[:3]
    assert len({norms(attempt).tobytes() for attempt in (first, second, third)}) == 3  # other starts end elsewhere


def test_a_random_start_lies_in_the_ball_and_belongs_to_the_behavior(asked):
    unit = float(mean_embedding_norm(asked.model.params))
    starts = asked.perturb(requests(BEHAVIORS), Perturbation(steps=0, radius=0.5), restart=1)
    for attempt, words in zip(starts, (3, 1)):
        assert (norms(attempt) > 0).sum() == words and norms(attempt).max() <= 0.5 * unit * (1 + 1e-5)
    (alone,) = asked.perturb(requests(BEHAVIORS[1:]), Perturbation(steps=0, radius=0.5), restart=1)
    np.testing.assert_array_equal(alone.delta[0], starts[1].delta[0])  # whatever stands in the batch beside it
    unpadded = dataclasses.replace(asked, decoding=dataclasses.replace(asked.decoding, prompt_block=1))
    (short,) = unpadded.perturb(requests(BEHAVIORS[1:]), Perturbation(steps=0, radius=0.5), restart=1)
    length = len(short.delta[0])
    assert length < len(alone.delta[0]) and not np.any(alone.delta[0][:-length])
    np.testing.assert_array_equal(short.delta[0], alone.delta[0][-length:])  # and however far it is padded
    assert not np.any(asked.perturb(requests(BEHAVIORS), Perturbation(steps=0, radius=0.5))[0].delta[0])


def test_the_suffix_alone_is_perturbed(asked):
    attack = ATTACKS["embedding_suffix_radius"]
    settings = embedding_suffix.Settings(Perturbation(steps=2), suffix="a b", radii=(0.5, 4.0))
    assert attack.variants(settings, ()) == ["0.5", "4"] and attack.curve
    (first, second) = attack.attempts(BEHAVIORS, asked, Context(0, settings, "4"))
    assert (first.prompt, second.prompt) == ("paint the wood a b", "wash a b")
    for attempt in (first, second):
        perturbed = np.flatnonzero(norms(attempt))
        assert len(perturbed) == 2 and perturbed[1] == perturbed[0] + 1  # two words, side by side
        assert perturbed[1] == len(attempt.delta[0]) - 3  # before the end of the turn and the assistant's tag
    row, how = ATTACKS["embedding_suffix"], dataclasses.replace(settings.perturbation, radius=4.0)
    found = row.attempts(BEHAVIORS, asked, Context(0, dataclasses.replace(settings, perturbation=how, restarts=2)))
    assert not row.curve and row.variants(settings, ()) == ("",)  # counted in the worst case
    assert [(attempt.behavior, attempt.prompt) for attempt in found] == [(a.behavior, a.prompt) for a in (first, first, second, second)]
    for attempt, again, expected in zip(found[::2], found[1::2], (first, second)):
        np.testing.assert_array_equal(attempt.delta[0], expected.delta[0])
        assert (norms(again) > 0).sum() == 2 and not np.array_equal(again.delta[0], attempt.delta[0])
    with pytest.raises(ValueError, match="the suffix ' ' adds no token"):
        Victim.perturb(asked, [dataclasses.replace(first, suffix=" ", prompt="wash ")], settings.perturbation)


def test_the_rest_of_a_prefilled_answer_is_what_is_raised(asked):
    attack, settings = ATTACKS["embedding_prefill"], embedding_prefill.Settings(Perturbation(steps=2, radius=0.5), lengths=(2,))
    found = attack.attempts(BEHAVIORS, asked, Context(0, settings, "2"))
    assert [(a.prefill, a.target) for a in found] == [("with a", "brush and some oil"), ("a", "b")]
    for attempt, expected in zip(found, asked.perturb([dataclasses.replace(a, delta=None) for a in found], settings.perturbation)):
        np.testing.assert_array_equal(attempt.delta[0], expected.delta[0])


@pytest.mark.parametrize("bad, key", [(embedding.Settings(radii=()), "radii"), (embedding.Settings(radii=(0.1, -1.0)), "radii"),
                                      (prefill.Settings(lengths=(0,)), "lengths"), (prefill.Settings(tokens=()), "tokens"),
                                      (embedding_prefill.Settings(lengths=()), "lengths"),
                                      (embedding_search.Settings(steps=(0,)), "steps"),
                                      (embedding_search.Settings(restarts=()), "restarts"),
                                      (embedding_search.Settings(Perturbation(narrowest=0.5)), r"perturbation\.narrowest"),
                                      (embedding_suffix.Settings(suffix=" "), "suffix"),
                                      (embedding_suffix.Settings(radii=()), "radii")])  # fmt: skip
def test_points_that_cannot_be(bad, key):
    with pytest.raises(ValueError, match=rf"config\.attacks\.x\.{key} is"):
        validate(bad, "attacks.x")
