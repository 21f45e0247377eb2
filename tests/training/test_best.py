"""Which measurement is the best and when to stop, against the definitions in words, over every short course of a training."""

import itertools
import json

import pytest

from dat_jax.training import best
from dat_jax.training.best import Measured, Standing

SHARES = (0.0, 1 / 3, 1.0)


def course(measurements):
    return [
        {"step": 10 * number, "watch/broken": broken, "watch/benign_refused": refused}
        for number, (broken, refused) in enumerate(measurements, start=1)
    ]


def chosen(lines, limit):
    """The step of the best one: sorted by success, then refusals, then the later first; None where none is within the bound."""
    within = [line for line in lines if line["watch/benign_refused"] <= limit]
    order = sorted(within, key=lambda line: (line["watch/broken"], line["watch/benign_refused"], -line["step"]))
    return order[0]["step"] if order else None


def without(lines, limit):
    """How many of the last measurements are no better than what was there before, by going back from the end."""
    pairs = [(line["watch/broken"], line["watch/benign_refused"]) for line in lines]
    for back in range(len(pairs)):
        *before, last = pairs[: len(pairs) - back]
        if last[1] <= limit and all(last < other for other in before if other[1] <= limit):
            return back
    return len(pairs)


@pytest.mark.parametrize("limit", [0.0, 1 / 3, 0.9, 1.0])
def test_every_course_of_up_to_four_measurements(limit):
    stopped = set()
    for length in range(5):
        for measurements in itertools.product(itertools.product(SHARES, SHARES), repeat=length):
            lines = course(measurements)
            found = best.standing(lines, limit)
            assert (found.best and found.best.step) == chosen(lines, limit)
            assert found.without == without(lines, limit)
            assert [best.stops(found, patience) for patience in range(4)] == [False, *(found.without >= n for n in (1, 2, 3))]
            stopped.add(best.stops(found, 2))
    assert stopped == {True, False}


def test_a_course_in_parts_is_the_whole_one():
    """However often a training is killed: what was written down and told to other processes decides as if nothing had happened."""
    lines = course(itertools.product(SHARES, SHARES))
    whole = best.standing(lines, 1 / 3)
    for cut in range(len(lines)):
        found = Standing.of(best.standing(json.loads(json.dumps(lines[:cut])), 1 / 3).numbers)
        for line in lines[cut:]:
            found = best.after(found, best.measured(line), 1 / 3)
        assert found == whole
    assert whole == Standing(Measured(10, 0, 0), 8)


def test_shares_are_compared_as_they_are_written():
    """metrics.jsonl has six digits: 1/3 and 0.333333 are one share, for the bound too."""
    first, again = ({"step": 1, "watch/broken": share, "watch/benign_refused": share} for share in (1 / 3, 0.333333))
    assert best.measured(first) == best.measured(again)
    assert best.standing([again], 1 / 3) == best.standing([first], 0.333333) == Standing(Measured(1, 333_333, 333_333), 0)


def test_the_larger_share_of_refusals_counts_and_other_lines_do_not():
    line = {"step": 3, "watch/broken": 0.5, "watch/benign_refused": 0.1, "watch/borderline_refused": 0.4}
    assert best.measured(line) == Measured(3, 500_000, 400_000)
    assert best.measured({"step": 3, "watch/broken": 0.5}) == Measured(3, 500_000, 0)
    assert best.measured({"step": 3, "watch/benign_refused": 0.1}) is None
    assert best.measured({"step": 3, "loss/total": 1.0}) is None
    assert best.standing([line], 0.3) == Standing(None, 1)
    assert best.standing([{"step": 1, "loss/total": 1.0}], 0.3) == Standing()
