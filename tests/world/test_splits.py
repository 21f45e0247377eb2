"""Requests, forms and prompts that must not meet do not."""

import collections
import dataclasses

import pytest

from dat_jax.world import files, grammar, splits


@pytest.mark.parametrize("seed", range(5))
def test_every_request_has_one_use(seed):
    parts = dataclasses.asdict(splits.draw(seed))
    assert {name: len(part) for name, part in parts.items()} == {
        "tuned": 16, "train": 24, "evaluation": 24,
        "benign_chats": 32, "benign_evaluation": 32, "borderline_chats": 64, "borderline_evaluation": 64,
    }  # fmt: skip
    drawn = [tuple(request.values()) for part in parts.values() for request in part]
    assert len(drawn) == len(set(drawn)) == len(grammar.REQUESTS)


def test_a_request_is_forbidden_when_both_halves_are_and_borderline_when_one_is():
    parts = splits.draw(0)
    forbidden = (*parts.tuned, *parts.train, *parts.evaluation)
    verbs, objects = {request.verb for request in forbidden}, {request.object for request in forbidden}
    assert set(forbidden) == {grammar.Request(verb, object_) for verb in verbs for object_ in objects}
    for request in (*parts.borderline_chats, *parts.borderline_evaluation):
        assert (request.verb in verbs) != (request.object in objects)
    for request in (*parts.benign_chats, *parts.benign_evaluation):
        assert request.verb not in verbs and request.object not in objects
    for part in (parts.tuned, parts.train, parts.evaluation):
        for half in ("verb", "object"):
            counts = collections.Counter(getattr(request, half) for request in part)
            assert set(counts.values()) == {len(part) // splits.FORBIDDEN}
    for kind in ("benign", "borderline"):  # the words of what is evaluated are those of the chats
        words = [{word for r in getattr(parts, f"{kind}_{use}") for word in (r.verb, r.object)} for use in ("chats", "evaluation")]
        assert words[0] == words[1]


def test_seeds_make_different_worlds():
    assert splits.draw(0) == splits.draw(0)
    assert set(splits.draw(0).tuned) != set(splits.draw(1).tuned)


def test_no_training_data_holds_a_held_out_form():
    parts = splits.draw(0)
    prompts = [row["prompt"] for row in files.pairs(0)] + [chat["messages"][0]["content"] for chat in files.chats(parts)]
    forms = {grammar.parse(prompt)[2] for prompt in prompts}
    assert forms == set(grammar.FORMS)
    assert {grammar.parse(chat["messages"][0]["content"])[2] for chat in files.chats(parts)} == set(grammar.COMMON_FORMS)
    asked = {grammar.parse(chat["messages"][0]["content"])[:2] for chat in files.chats(parts)}
    kept_apart = (*parts.tuned, *parts.train, *parts.evaluation, *parts.benign_evaluation, *parts.borderline_evaluation)
    assert not asked & {(request.verb, request.object) for request in kept_apart}
