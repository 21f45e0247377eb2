"""Which benign answers prompts are sampled for, and with which settings."""

import dataclasses

import pytest

from dat_jax.diffusion.pool import Pool, unselected
from dat_jax.diffusion.utility import SampledUtility, benign_answers
from dat_jax.settings import validate

CHATS = [
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    for prompt, answer in (("a ?", "x"), ("b ?", "y"), ("a again ?", "x"), ("c ?", "z"), ("d ?", "w"))
]


def test_each_different_answer_is_sampled_for_once():
    found = benign_answers(CHATS, 0)
    assert [(b.text, b.targets) for b in found] == [("a ?", ("x",)), ("b ?", ("y",)), ("c ?", ("z",)), ("d ?", ("w",))]
    assert len({b.id for b in found}) == 4 and found[0].id == benign_answers(CHATS[:1], 0)[0].id  # an id depends on the answer alone
    assert [b.targets[0] for b in benign_answers(CHATS, 2)] == ["x", "w"]  # spread over the file


def test_benign_prompts_are_drawn_as_the_others_without_likelihoods():
    pool = Pool(samples=64, keep=8, likelihood_samples=16, selection="combined", steps=7)
    benign = unselected(pool, 3)
    assert (benign.samples, benign.likelihood_samples, benign.selection) == (3, 0, "random")
    assert dataclasses.replace(benign, samples=64, keep=8, likelihood_samples=16, selection="combined") == pool
    benign.validate("sampler")


@pytest.mark.parametrize("bad", [{"samples": -1}, {"answers": -1}, {"keep": "some"}, {"threshold": 0.5}, {"response": "ours"}])
def test_a_bad_value_names_its_key(bad):
    with pytest.raises(ValueError, match=rf"config\.utility\.{next(iter(bad))} is"):
        validate(SampledUtility(**bad), "utility")
