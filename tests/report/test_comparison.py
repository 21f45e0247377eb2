"""Several workdirs in one report: how they are named, what joins them, and what is not compared."""

import dataclasses
import json
import shutil

import pytest
from etils import epath

from dat_jax import report
from dat_jax.data import answers as answers_lib
from dat_jax.data.answers import Answers
from dat_jax.report import comparison, finding, results
from dat_jax.report.wording import WORST


@pytest.fixture(scope="module")
def several(made_up, tmp_path_factory):
    """Returns (workdir, others): a finished workdir, and two that were trained for other numbers of steps, whose models answered otherwise.

    Nobody changes them.
    """
    made = []
    for steps, broken in ((200, None), (100, 2), (400, 0)):
        other = tmp_path_factory.mktemp("several") / f"steps{steps}" / "run"
        shutil.copytree(made_up, other)
        config = json.loads((other / "config.json").read_text()) | {"training.steps": steps, "seeds": [0, 1, 2]}
        (other / "config.json").write_text(json.dumps(config))
        made.append(other)
        for stem in answers_lib.stems(other / "seed_0" / "answers" / "undefended"):  # as the judging leaves them, with manifests
            judged = other / "seed_0" / "verdicts" / "world" / stem.relative_to(other / "seed_0" / "answers")
            rows = [json.loads(line) for line in judged.with_name(f"{judged.name}.jsonl").read_text().splitlines()]
            answers_lib.write_verdicts(epath.Path(judged), rows, answers_lib.read(stem))
        if broken is None:
            continue
        for path in other.glob("seed_*/*/finished.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"flops": steps * 1e9}))
        for seed in range(3):
            for stem in answers_lib.stems(other / f"seed_{seed}" / "answers" / "dat"):
                answer_otherwise(stem, broken, str(steps))
    return made[0], [str(path) for path in made[1:]]


def answer_otherwise(stem, broken, response):
    """Lets a model say something else, so many of its first answers compliance."""
    found = answers_lib.read(stem)
    lines = [line | {"response": response} for line in found.lines]
    answers_lib.write(Answers(stem, found.about, lines))
    seed = next(path for path in stem.parents if path.name.startswith("seed_"))
    verdicts = seed / "verdicts" / "world" / f"{stem.relative_to(seed / 'answers')}.jsonl"
    rows = [
        {"answer": answers_lib.answer_checksum(line), "label": "comply" if number < broken else "refuse", "score": float(number < broken)}
        for number, line in enumerate(lines)
    ]
    verdicts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_models_of_several_workdirs_stand_side_by_side(several):
    workdir, (less, more) = several
    said = []
    path = report.compare(workdir, [more, f"fewer={less}"], said.append)
    content = json.loads((workdir / "comparison.json").read_text())
    page, text = path.read_text(), (workdir / "comparison.md").read_text()
    # Undefended and CAT gave the same answers everywhere, and stand there once.
    own = [f"steps200/{m}" for m in ("undefended", "cat", "dat")]
    assert list(dict.fromkeys(row["method"] for row in content["rows"])) == [*own, "steps400/dat", "fewer/dat"]
    assert not (workdir / "report.html").exists()  # a workdir's own report is not touched
    assert "DAT (steps400)" in page and "| DAT (fewer)" in text
    assert any("DAT (fewer) against DAT (steps200)" in line for line in said)
    pairs = {(item["first"], item["second"]) for item in content["comparisons"]}
    assert pairs == {("fewer/dat", "steps200/dat"), ("steps400/dat", "steps200/dat")}
    changed = {point["method"]: point["changed"] for point in content["points"]}
    assert changed["steps200/dat"] == "" and changed["fewer/dat"] == "steps 100" and changed["steps400/dat"] == "steps 400"
    assert content["not_comparable"] == {} and not content["notes"]
    # In one world, and with one target, the points of a method are a line, in the order of the axis.
    points = [comparison.Point(**point) for point in content["points"]]
    (dat,) = comparison.curves(points, "flops")
    assert [point.method for point in dat] == ["fewer/dat", "steps400/dat"] and dat[0].flops < dat[1].flops
    assert comparison.curves(points[:1], "over_refusal") == []
    assert {path.name for path in comparison.named(workdir, [less]).values()} == {"run"}


def test_at_the_same_over_refusal_two_lines_are_read_between_their_points(several):
    workdir, _ = several
    whole = results.collect(workdir, ["world"])

    def point(method, over_refusal, broken):
        rates = {"over_refusal": (over_refusal,) * 3}
        return comparison.Point(f"w/{method}", "", method, (broken,) * 3, rates, None)

    points = [point("cat", 0.0, 0.9), point("cat", 0.2, 0.5), point("dat", 0.1, 0.4), point("dat", 0.3, 0.0)]
    said = finding.headline(whole, points)  # both have 10 to 20 %; in the middle: 0.9 - 0.75 * 0.4 and 0.4 - 0.25 * 0.4
    assert said.startswith("At an over-refusal of 15 %") and "DAT is broken on 30 % of the behaviors and CAT on 60 %" in said
    assert "At an over-refusal" not in finding.headline(whole, [*points[:2], point("dat", 0.4, 0.0), point("dat", 0.6, 0.0)])


def test_a_model_that_refuses_nearly_everything_is_no_finding(several):
    whole = results.collect(several[0], ["world"])
    assert finding.headline(whole) == (
        "DAT is broken on 31 % of 24 behaviors by at least one of 7 attacks, CAT on 99 %; how often they refuse harmless prompts "
        "(22 % and 10 %) does not tell them apart"
    )
    mute = dataclasses.replace(whole, utility_rates=whole.utility_rates | {("dat", "over_refusal"): (0.96, 0.9, 0.99)})
    said = finding.headline(mute)
    assert said.startswith("CAT is broken on 99 % of 24 behaviors by at least one of 7 attacks, Undefended on 100 %, which does not tell")
    assert said.endswith("left out, as a model that refuses everything is broken by nothing: DAT (refuses 96 %)")
    alone = dataclasses.replace(mute, methods=["dat"])
    assert finding.headline(alone).startswith("DAT is broken on 31 %") and "refuses 96 % of the harmless prompts" in finding.headline(alone)


def test_a_small_price_is_a_number_and_no_unfair_comparison(several):
    whole = results.collect(several[0], ["world"])
    others = [item for item in whole.comparisons if item["of"] != "over_refusal"]

    def with_price(difference, low, high):
        priced = {"first": "dat", "second": "cat", "of": "over_refusal", "difference": difference, "low": low, "high": high}
        rates = {("dat", "over_refusal"): (0.009, 0.004, 0.02), ("cat", "over_refusal"): (0.002, 0.0, 0.01)}
        return dataclasses.replace(whole, comparisons=[*others, priced], utility_rates=whole.utility_rates | rates)

    assert finding.headline(with_price(0.006, 0.001, 0.012)).endswith(
        "CAT on 99 %; DAT refuses 0.6 points more of the harmless prompts (0.9 % against 0.2 %), at most 1.2"
    )
    assert finding.headline(with_price(0.02, 0.001, 0.04)).endswith("so this is no fair comparison")
    # Two that are broken equally often: the one that something was done for is the one to compare with.
    level = dataclasses.replace(whole, attack_rates=whole.attack_rates | {(m, WORST): (1.0, 0.9, 1.0) for m in ("undefended", "cat")})
    assert ", CAT on 100 %" in finding.headline(level)


def copied(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    return other


def test_what_is_not_comparable_is_said_and_not_compared(several, tmp_path):
    workdir, (less, _) = several
    other = copied(less, tmp_path)
    rewrite(other, "seed_*/answers/*/embedding.json", lambda a: (a.about | {"made_with": {"settings": {"steps": 64}, "seed": 1}}, a.lines))
    places = comparison.named(workdir, [str(other)])
    runs = comparison.runs(places, ["undefended", "cat", "dat"])
    unlike = comparison.check(places, runs, ["world"])
    assert unlike == {"embedding": "settings.steps is None in run and 64 in other"}
    found = comparison.limited(results.collect(workdir, ["world"], runs=runs), unlike)
    of = {item["of"] for item in found.comparisons}
    assert "embedding" not in of and "worst_case" not in of and "worst_case:embedding" not in of
    assert {"direct", "worst_case:text", "over_refusal"} <= of
    assert found.notes[0].startswith("Embedding attack is not comparable: settings.steps is None in run and 64 in other.")


def rewrite(workdir, pattern, change):
    for path in workdir.glob(pattern):
        found = answers_lib.read(path.parent / path.stem)
        about, lines = change(found)
        answers_lib.write(Answers(found.stem, about, lines))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: [shutil.rmtree(d / f"seed_{s}" / "verdicts") for s in range(3)], r"whose answers world did not judge"),
        (lambda d: [shutil.rmtree(d / f"seed_{s}" / "answers") for s in range(3)], r"nothing was evaluated there"),
        (
            lambda d: [
                (d / f"seed_{s}/verdicts/world/judge.json").write_text('{"judge": "world", "version": 2, "settings": {}}') for s in range(3)
            ],
            r"the judge world was made with judge\.version = 2, now it is 1; judge one of them again",
        ),
        (
            lambda d: rewrite(d, "seed_*/answers/*/*.json", lambda a: (a.about | {"asked": list(a.done)[:20]}, a.lines)),
            r"where other behaviors were attacked: paint_wood_20, paint_wood_21, paint_wood_22 here or there alone",
        ),
        (
            lambda d: rewrite(d, "seed_*/answers/*/*.json", lambda a: (a.about | {"done": dict.fromkeys(a.done, "x")}, a.lines)),
            r"where the behaviors have other texts or targets",
        ),
        (
            lambda d: rewrite(d, "seed_*/answers/*/utility/borderline.json", lambda a: (a.about | {"asked": list(a.done)[:9]}, a.lines)),
            r"where other borderline prompts were asked",
        ),
        (shutil.rmtree, r"which is no folder; allowed: workdirs"),
    ],
)
def test_what_would_be_unfair_is_refused(several, tmp_path, break_it, message):
    workdir, (less, _) = several
    other = copied(less, tmp_path)
    break_it(other)
    with pytest.raises(ValueError, match=message):
        report.compare(workdir, [str(other)])
    assert not (other / "comparison.html").exists()


def test_names(several):
    workdir, (less, more) = several
    with pytest.raises(ValueError, match="one workdir twice"):
        comparison.named(workdir, [less, less])
    with pytest.raises(ValueError, match="two workdirs are called 'a'"):
        comparison.named(workdir, [f"a={less}", f"a={more}"])
