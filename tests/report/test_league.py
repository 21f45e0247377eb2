"""The league's table and robustness at fixed over-refusals, on a made-up workdir."""

import dataclasses

import pytest

from dat_jax.report import league, results
from dat_jax.report.comparison import Point
from dat_jax.report.html import percent, span


@pytest.fixture(scope="module")
def whole(made_up):
    return results.collect(made_up, ["world"])


def test_a_row_per_model_with_what_breaks_it_what_it_answers_and_what_it_cost(whole):
    spent = {("cat", seed): {"flops": 3e12 * (seed + 1)} for seed in range(3)} | {("dat", seed): {"flops": 6e12} for seed in range(3)}
    (table,) = league.league(dataclasses.replace(whole, finished=spent), [])
    assert [row[0] for row in table.rows] == ["DAT", "CAT", "Undefended"]  # the least broken first
    rows = {row[0]: dict(zip(table.head, row)) for row in table.rows}
    for access in ("text attacks", "prefilled answers", "embedding attacks"):
        assert f"Worst case over {access}" in table.head
    broken = whole.attack_rates["dat", "worst_case"]
    assert rows["DAT"]["Worst case over all attacks"] == f"{percent(broken[0])} [{span(broken)}]"
    refused = whole.utility_rates["cat", "over_refusal"]
    assert rows["CAT"]["Borderline prompts refused (over-refusal)"] == f"{percent(refused[0])} [{span(refused)}]"
    assert "Benign prompts answered" in table.head
    # Of 150 steps; sampling takes 12 TFLOP, and only DAT samples. The mean over seeds of CAT is 6 TFLOP.
    assert [rows["CAT"][name] for name in ("Steps", "TFLOP per step", "TFLOP in all")] == ["150", "0.04", "6"]
    assert [rows["DAT"][name] for name in ("Steps", "TFLOP per step", "TFLOP in all")] == ["150", "0.04", "18"]
    assert [rows["Undefended"][name] for name in ("Steps", "TFLOP per step", "TFLOP in all")] == ["-", "-", "-"]
    assert "3 seeds" in table.caption and "LAT's as many as methods.lat.updates says" in table.caption
    assert not list(league.league(dataclasses.replace(whole, methods=["cat", "dat"]), []))


def test_robustness_is_read_between_the_points_of_a_line_and_nowhere_else(whole):
    def point(workdir, over_refusal, broken):
        rates = (broken, broken - 0.1, broken + 0.1)
        return Point(f"{workdir}/cat", "", "one line", rates, {"over_refusal": (over_refusal,) * 3}, None)

    (table,) = league.at_fixed_refusals(whole, [point("a", 0.18, 0.3), point("b", 0.08, 0.7)])
    (row,) = table.rows
    assert row[:3] == ["CAT", "b, a", "8.0 % to 18 %"]
    # At 10 %: a fifth of the way from 0.7 to 0.3. At 1, 2, 5, 20 and 30 % there are no points on both sides.
    assert row[3:] == ["-", "-", "-", "62 % [52 to 72]", "-", "-"]
    (empty,) = league.at_fixed_refusals(whole, [point("a", 0.18, 0.3)])
    assert not empty.rows
