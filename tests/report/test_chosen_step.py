"""What the report says of a training that ended early, and of which step's weights were evaluated."""

import pytest

from dat_jax.report import notes


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ({"steps": 60}, []),
        (
            {"steps": 60, "used": "best", "used_step": 40},
            ["the model is that of step 40, chosen by attacks on behaviors that are not evaluated."],
        ),
        ({"steps": 60, "used": "last"}, ["no measurement was within the bound on refusals; the model is that of the last step."]),
        (
            {"steps": 50, "steps_asked": 60, "stopped": "no better measurement in 3 in a row", "used": "last"},
            [
                "the training ended early, after step 50 of 60: no better measurement in 3 in a row.",
                "no measurement was within the bound on refusals; the model is that of the last step.",
            ],
        ),
    ],
)
def test_a_chosen_step_and_an_early_end_are_said(end, said):
    found = notes.gaps(["dat"], [2], {("dat", 2): {}}, {}, {("dat", 2): end}, [("dat", 2)])
    assert found == [f"DAT, seed 2: {text}" for text in said]
