"""A sweep of workdirs: what its points are, in which order they are joined, and what cannot be joined."""

import json
import pathlib
import shutil

import pytest

from dat_jax import report
from dat_jax.data import manifest
from dat_jax.report import figures, results, sweep


def read(workdir):
    return json.loads((pathlib.Path(workdir) / "results.json").read_text())


@pytest.fixture
def swept(made_up_workdir, tmp_path_factory):
    """Returns (workdir, others): a finished workdir and two copies that were trained for other numbers of steps."""
    others = []
    for steps in (100, 400):
        other = tmp_path_factory.mktemp("sweep") / f"steps{steps}"
        shutil.copytree(made_up_workdir, other)
        config = json.loads((other / "config.json").read_text()) | {"training.steps": steps, "evaluation.judges": ["world"], "seeds": [7]}
        (other / "config.json").write_text(json.dumps(config))
        for path in other.glob("seed_*/*/finished.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"flops": steps * 1e9}))
        report.write(other)
        others.append(str(other))
    config = json.loads((made_up_workdir / "config.json").read_text()) | {"training.steps": 200, "evaluation.sweep": others[::-1]}
    (made_up_workdir / "config.json").write_text(json.dumps(config))
    return made_up_workdir, others


def test_points_are_joined_in_the_order_of_the_axis(swept):
    workdir, (less, more) = swept
    page = report.write(workdir).read_text()
    found = read(workdir)["sweep"]
    assert {(p["workdir"], p["changed"]) for p in found} == {("", ""), (less, "steps 100"), (more, "steps 400")}
    assert {p["method"] for p in found} == {"undefended", "cat", "dat"}
    own = read(workdir)
    points = sweep.points(own, [more, less])
    dat = sweep.curves(points, "flops")["dat"]
    assert [point.workdir for point in dat if point.workdir] == [less, more]
    costs = [[row["total"] for row in read(w)["flops"] if row["method"] == "dat"] for w in (less, more)]
    assert [point.flops for point in dat if point.workdir] == [sum(found) / 3 for found in costs] and costs[0] < costs[1]
    assert "steps 400" in page and "A line joins" in page
    whole = results.collect(workdir, ["world"])
    assert figures.price(whole, points).count("<path") > figures.price(whole, points[:0]).count("<path") == 0
    assert len(figures.trade_off(whole, points)) > len(figures.trade_off(whole))


def test_a_lone_point_is_no_curve(swept):
    workdir, _ = swept
    report.write(workdir)
    own = read(workdir)
    assert sweep.points(own, []) == []
    assert sweep.curves(sweep.of_results(own, "", {}), "over_refusal") == {}


def test_what_cannot_be_joined(swept, tmp_path_factory):
    workdir, (less, _) = swept
    report.write(workdir)
    own = read(workdir)
    with pytest.raises(ValueError, match=r"config\.evaluation\.sweep names '/nowhere', which has no results\.json"):
        sweep.points(own, ["/nowhere"])
    other = read(less)
    other["attacks"] = other["attacks"][1:]
    folder = tmp_path_factory.mktemp("fewer")
    other.pop(manifest.KEY)
    manifest.write(folder / "results.json", other)
    with pytest.raises(ValueError, match=r"where other attacks were tried: direct here or there alone"):
        sweep.points(own, [str(folder)])
