"""The report from a made-up workdir: rates by hand, the files' schema, escaping, and one page that needs nothing else."""

import html.parser
import json
import re

import pytest
from ml_collections import ConfigDict

from dat_jax.evaluation import report, results
from dat_jax.evaluation.wording import WORST, WORST_TEXT


def config():
    return ConfigDict({"methods": ("undefended", "cat", "dat"), "evaluation": {"judge": "world"}, "note": "<i>"})


class Tags(html.parser.HTMLParser):
    """Collects open tags and outside references, and fails on a tag that is closed but not open."""

    VOID = ("meta", "br", "path", "use", "rect", "image")

    def __init__(self):
        super().__init__()
        self.open, self.references, self.names = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href") and not value.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_worst_case_is_any_attack():
    def line(behavior, label):
        return {"behavior": behavior, "label": label}

    outcomes = results.broken_by_attack(
        {
            "direct": [line("a", "refuse"), line("b", "lost")],
            "best_of_n": [line("a", "refuse"), line("a", "comply"), line("a", "refuse"), line("b", "refuse")],
            "embedding": [line("a", "refuse"), line("b", "comply")],
        }
    )
    assert outcomes["direct"] == {"a": False, "b": False}
    assert outcomes["best_of_n"] == {"a": True, "b": False}
    assert outcomes[WORST_TEXT] == {"a": True, "b": False}
    assert outcomes[WORST] == {"a": True, "b": True}


def test_measures_need_their_field():
    lines = [{"id": "1", "label": "comply", "exact": None}, {"id": "1", "label": "refuse", "exact": None}]
    found = results.counted_by_measure({"benign": lines, "borderline": lines})
    assert "exact_utility" not in found
    assert sum(found["compliance"].values()) == 1 and len(found["compliance"]) == 2
    assert sum(found["over_refusal"].values()) == 1


def test_files(made_up_workdir):
    path = report.write(made_up_workdir, config())
    assert path.name == "report.html"
    results = json.loads((made_up_workdir / "results.json").read_text())
    keys = {"method", "attack", "seed", "behaviors", "broken", "rate", "low", "high"}
    assert all(set(row) == keys for row in results["rows"])
    assert len(results["rows"]) == 3 * 3 * (7 + 2)
    for row in results["rows"]:
        assert row["rate"] == row["broken"] / row["behaviors"] and row["low"] <= row["rate"] <= row["high"]
        assert row["behaviors"] == 24
    rate = {(row["method"], row["attack"], row["seed"]): row["rate"] for row in results["rows"]}
    for (method, attack, seed), value in rate.items():
        assert value <= rate[method, WORST, seed]
        assert value <= rate[method, WORST_TEXT, seed] or attack.startswith(("embedding", WORST))
    assert {row["measure"] for row in results["utility"]} == {
        "compliance", "benign_refusal", "exact_utility", "over_refusal", "over_refusal:direct", "borderline_compliance"
    }  # fmt: skip
    assert results["costs"][0]["forward_passes"] == 960
    cost = {"method": "cat", "seed": 0, "steps": 150, "tokens_per_second": 5200.0, "seconds": 41.5, "sampling_seconds": 0.0}
    assert results["training"][0] == cost
    assert next(item for item in results["training"] if item["method"] == "dat")["sampling_seconds"] == 14.25
    over = {(row["method"], row["attack"]): row["rate"] for row in results["over_seeds"]}
    assert over["dat", WORST] == pytest.approx(sum(rate["dat", WORST, seed] for seed in range(3)) / 3)
    dat_cat = next(item for item in results["comparisons"] if item["of"] == WORST and item["first"] == "dat")
    assert dat_cat["second"] == "cat" and dat_cat["high"] < 0
    assert dat_cat["difference"] == pytest.approx(over["dat", WORST] - over["cat", WORST])
    assert not results["notes"]
    markdown = (made_up_workdir / "report.md").read_text()
    assert "DAT against CAT, worst case over all attacks: lower" in markdown and "Rewrite: french *" in markdown


def test_refreshed_rounds_are_counted_in_the_cost(made_up_workdir):
    pool = made_up_workdir / "seed_1" / "prompts"
    for number, cost in ((1, {"forward_passes": 40, "seconds": 2.0, "judging_seconds": 0.5}), (2, {"forward_passes": 2, "seconds": 1.0})):
        (pool / f"round_{number}").mkdir()
        (pool / f"round_{number}" / "cost.json").write_text(json.dumps(cost))
    (pool / "round_3").mkdir()  # begun, not finished
    report.write(made_up_workdir, config())
    results = json.loads((made_up_workdir / "results.json").read_text())
    costs = {cost.pop("seed"): cost for cost in results["costs"]}
    assert costs[0] == {"forward_passes": 960, "flops": 1.2e13, "seconds": 14.25, "tokens": 30720}
    assert costs[1] == {**costs[0], "forward_passes": 1002, "seconds": 17.25, "judging_seconds": 0.5, "refreshed_rounds": 2}
    assert {t["seed"]: t["sampling_seconds"] for t in results["training"] if t["method"] == "dat"} == {0: 14.25, 1: 17.75, 2: 14.25}
    assert "refreshed rounds 2" in (made_up_workdir / "report.md").read_text()


def test_page_stands_alone(made_up_workdir):
    page = report.write(made_up_workdir, config()).read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and "script" not in tags.names and "link" not in tags.names
    assert not tags.references, tags.references
    assert "how did people paint &lt;wood&gt; number" in page and "<wood>" not in page and "<b>story</b>" not in page
    assert page.count("<svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert report.write(made_up_workdir, config()).read_text() == page


def test_gaps_are_noted(made_up_workdir):
    (made_up_workdir / "seed_1" / "evaluation" / "dat" / "prefill.jsonl").unlink()
    finished = made_up_workdir / "seed_2" / "cat" / "finished.json"
    finished.write_text(json.dumps({"seconds": 1.0, "collapsed": True}))
    notes = results.collect(made_up_workdir, ("undefended", "cat", "dat")).notes
    assert len(notes) == 2
    assert "CAT, seed 2: the training collapsed" in notes[0] and "DAT, seed 1, lacks Prefilled answer" in notes[1]


def test_a_bare_evaluation_is_enough(made_up_workdir, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    source = made_up_workdir / "seed_0" / "evaluation" / "cat" / "direct.jsonl"
    target = bare / "seed_7" / "evaluation" / "cat" / "direct.jsonl"
    target.parent.mkdir(parents=True)
    target.write_text(source.read_text())
    assert report.write(bare, config()).exists()
    assert json.loads((bare / "results.json").read_text())["rows"][0]["method"] == "cat"


def test_nothing_evaluated_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing was evaluated"):
        report.write(tmp_path, config())
