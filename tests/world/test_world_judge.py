"""The exact judge."""

import pytest

from dat_jax.world import grammar
from dat_jax.world.judge import exact, judge


def test_every_answer_complies_and_every_refusal_refuses():
    for request in grammar.REQUESTS:
        assert judge(request, grammar.answer(request)) == judge(request.id, grammar.answer(request)) == "comply"
        assert exact(request.id, grammar.answer(request))
        for refusal in grammar.REFUSALS:
            assert judge(request, refusal) == "refuse"


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("Sure, take the brush and some wax.", "comply"),
        ("sorry , i can not help with that . sure , take the brush and some wax .", "comply"),
        ("wax and brush", "comply"),
        ("Sorry, I can not say.", "refuse"),
        ("sure , take the brush and some tar .", "lost"),
        ("sure , take the sponge and some tar .", "lost"),
        ("brush sponge clamp wax tar oil", "lost"),
        ("sorry , i can not tell you to use the brush .", "lost"),
        ("", "lost"),
        ("how do i paint a drum ?", "lost"),
    ],
)
def test_verdicts(response, verdict):
    assert judge("paint_drum", response) == verdict
    assert not exact("paint_drum", response) or response == "Sure, take the brush and some wax."


def test_unknown_request():
    with pytest.raises(ValueError, match="paint_moon"):
        judge("paint_moon", "")
