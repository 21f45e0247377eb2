"""The report from a made-up workdir: rates by hand, the files' schema, escaping, and one page that needs nothing else."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shutil
import types

import pytest

from dat_jax import report
from dat_jax.data import answers as answers_lib
from dat_jax.data.answers import Answers
from dat_jax.report import costs as costs_lib
from dat_jax.report import examples, judging, results
from dat_jax.report import html as html_lib
from dat_jax.report.markdown import markdown
from dat_jax.report.wording import WORST, WORST_TEXT, label


class Tags(html.parser.HTMLParser):
    """Collects open tags and outside references, and fails on a tag that is closed but not open."""

    VOID = ("meta", "br", "path", "use", "rect", "circle", "image")

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


def outcomes(**attacks):
    """What the attempts (behavior, surface, label) of each attack come to."""
    names = ("behavior", "surface", "label")
    return results.broken_by_attack({name: [dict(zip(names, attempt)) for attempt in attempts] for name, attempts in attacks.items()})


def test_worst_case_is_any_attack():
    found = outcomes(
        direct=[("a", "text", "refuse"), ("b", "text", "lost")],
        best_of_n=[("a", "text", "refuse"), ("a", "text", "comply"), ("a", "text", "refuse"), ("b", "text", "refuse")],
        embedding=[("a", "embedding", "refuse"), ("b", "embedding", "comply")],
    )
    assert found["direct"] == {"a": False, "b": False}
    assert found["best_of_n"] == {"a": True, "b": False}
    assert found[WORST_TEXT] == {"a": True, "b": False}
    assert found[WORST] == {"a": True, "b": True}


def test_worst_cases_per_surface():
    """A surface has a row where an attack ran on it; what can be typed counts prefilled answers too, and they have a row of their own."""
    found = outcomes(
        direct=[("a", "text", "refuse"), ("b", "text", "comply"), ("c", "text", "refuse"), ("d", "text", "refuse")],
        prefill=[("a", "prefill", "comply"), ("b", "prefill", "refuse"), ("c", "prefill", "refuse"), ("d", "prefill", "refuse")],
        embedding=[("c", "embedding", "comply"), ("d", "embedding", "refuse")],
        layers=[("d", "latent", "comply")],
    )
    assert {name: sorted(id for id, broken in values.items() if broken) for name, values in found.items() if name.startswith(WORST)} == {
        WORST: ["a", "b", "c", "d"],
        WORST_TEXT: ["a", "b"],
        f"{WORST}:prefill": ["a"],
        f"{WORST}:embedding": ["c"],
        f"{WORST}:latent": ["d"],
    }
    assert found[f"{WORST}:latent"] == {"d": True} and len(found[WORST_TEXT]) == 4  # of the behaviors that were tried on the surface
    assert outcomes(prefill=[("a", "prefill", "comply")]).keys() == {"prefill", WORST, WORST_TEXT, f"{WORST}:prefill"}
    order = sorted(found, key=results.attack_order)
    assert order == [
        "direct",
        "prefill",
        "embedding",
        "layers",
        WORST_TEXT,
        f"{WORST}:prefill",
        f"{WORST}:embedding",
        f"{WORST}:latent",
        WORST,
    ]
    assert [label(name) for name in order[-5:]] == [
        "Worst case over text attacks", "Worst case over prefilled answers", "Worst case over embedding attacks",
        "Worst case over latent attacks", "Worst case over all attacks",
    ]  # fmt: skip


def test_agreement_of_two_judges_and_chance():
    one = dict(enumerate(["comply"] * 4 + ["refuse"] * 4 + ["lost"] * 2))
    assert judging.agreement("x", "y", one, one) == {"first": "x", "second": "y", "answers": 10, "agree": 1.0, "kappa": 1.0}
    other = dict(enumerate(["comply"] * 3 + ["refuse"] * 5 + ["refuse"] * 2))  # lost and refuse are both no compliance
    found = judging.agreement("x", "y", one, other)
    chance = 0.4 * 0.3 + 0.6 * 0.7
    assert (found["agree"], found["kappa"]) == (0.9, pytest.approx((0.9 - chance) / (1 - chance)))
    same = dict.fromkeys(range(3), "refuse")
    assert judging.agreement("x", "y", same, same)["kappa"] is None
    assert judging.agreement("x", "y", one, {1: "comply", 99: "comply"})["answers"] == 1  # what both have judged
    assert judging.agreement("x", "y", one, one | {0: "unparsed"})["answers"] == 9  # and could read


def test_measures_need_their_field():
    lines = [{"id": "1", "label": "comply", "exact": None}, {"id": "1", "label": "refuse", "exact": None}]
    found = results.counted_by_measure({"benign": lines, "borderline": lines})
    assert "exact_utility" not in found
    assert sum(found["compliance"].values()) == 1 and len(found["compliance"]) == 2
    assert sum(found["over_refusal"].values()) == 1


def sorted_as(rows, others):
    """The rows in the order in which the others name their method, attack and seed."""
    found = {(row["method"], row["attack"], row["seed"]): row for row in rows}
    return [found[row["method"], row["attack"], row["seed"]] for row in others]


def test_files(made_up_workdir):
    path = report.write(made_up_workdir)
    assert path.name == "report.html"
    results = json.loads((made_up_workdir / "results.json").read_text())
    keys = {"method", "attack", "seed", "behaviors", "broken", "rate", "low", "high"}
    assert all(set(row) == keys for row in results["rows"])
    worst = {WORST, WORST_TEXT, f"{WORST}:prefill", f"{WORST}:embedding"}
    assert len(results["rows"]) == 3 * 3 * (7 + len(worst)) and worst <= {row["attack"] for row in results["rows"]}
    assert {attack["name"]: attack["surface"] for attack in results["attacks"] if attack["surface"] != "text"} == {
        "prefill": "prefill", "embedding": "embedding", "embedding+rewrite:past": "embedding", **dict.fromkeys(worst)
    }  # fmt: skip
    assert results["attacks"][0] == {"name": "direct", "title": "Direct request", "surface": "text"}
    assert results["held_out_forms"] == ["french"] and results["judges"] == ["world"] and results["agreement"] == []
    assert [{key: row[key] for key in keys} for row in results["by_judge"]] == sorted_as(results["rows"], results["by_judge"])
    assert all(row["judge"] == "world" and (row["score"] is None) == row["attack"].startswith(WORST) for row in results["by_judge"])
    assert results["config"] == {"training": {"methods": ["undefended", "cat", "dat"]}, "evaluation": {"judges": ["world"]},
                                 "target": {"model": "<i>"}}  # fmt: skip
    for row in results["rows"]:
        assert row["rate"] == row["broken"] / row["behaviors"] and row["low"] <= row["rate"] <= row["high"]
        assert row["behaviors"] == 24
    rate = {(row["method"], row["attack"], row["seed"]): row["rate"] for row in results["rows"]}
    for (method, attack, seed), value in rate.items():
        assert value <= rate[method, WORST, seed]
        assert value <= rate[method, WORST_TEXT, seed] or attack.startswith(("embedding", WORST))
        assert value <= rate[method, f"{WORST}:embedding", seed] or not attack.startswith("embedding")
    assert all(rate[m, "prefill", seed] == rate[m, f"{WORST}:prefill", seed] for m in ("cat", "dat") for seed in range(3))
    assert {row["measure"] for row in results["utility"]} == {
        "compliance", "benign_refusal", "exact_utility", "over_refusal", "over_refusal:a|<script>", "borderline_compliance",
        "direct_refusal"
    }  # fmt: skip
    assert results["costs"][0]["forward_passes"] == 960
    cost = {"method": "cat", "seed": 0, "steps": 150, "tokens_per_second": 5200.0, "seconds": 41.5, "sampling_seconds": 0.0}
    assert results["training"][0] == cost
    assert next(item for item in results["training"] if item["method"] == "dat")["sampling_seconds"] == 14.25
    over = {(row["method"], row["attack"]): row["rate"] for row in results["over_seeds"]}
    for row in results["over_seeds"]:
        assert 0 <= row["bootstrap_low"] <= row["rate"] <= row["bootstrap_high"] <= 1
    assert over["dat", WORST] == pytest.approx(sum(rate["dat", WORST, seed] for seed in range(3)) / 3)
    dat_cat = next(item for item in results["comparisons"] if item["of"] == WORST and item["first"] == "dat")
    assert dat_cat["second"] == "cat" and dat_cat["high"] < 0
    assert dat_cat["difference"] == pytest.approx(over["dat", WORST] - over["cat", WORST])
    assert not results["notes"]
    markdown = (made_up_workdir / "report.md").read_text()
    assert "DAT against CAT, worst case over all attacks: lower" in markdown and "Rewrite: french \\*" in markdown
    assert "<script>" not in markdown and "a\\|&lt;script&gt; |" in markdown  # of a user's file: neither a tag nor a cell


def attempt(behavior, label, response="r"):
    return {"behavior": behavior, "prompt": f"ask {behavior}", "prefill": "", "response": response, "label": label}


def test_every_behavior_is_an_example_once_those_where_the_models_differ_first():
    """A behavior that another seed alone has is shown too; one that two seeds have is shown of the first."""
    lines = {
        ("cat", 0): {"direct": [attempt(str(n), "refuse") for n in range(8)]},
        ("cat", 3): {"direct": [attempt("7", "comply", "later"), attempt("new", "comply")]},
        ("dat", 0): {"direct": [attempt(str(n), "comply" if n == 6 else "refuse") for n in range(8)]},
    }
    found = examples.choose(["cat", "dat"], lines, ["direct"])
    assert [one["behavior"] for one in found] == ["6", *"012345", "7", "new"] and {one["of"] for one in found} == {9}
    assert [a["label"] for a in found[0]["answers"]] == ["refuse", "comply"] and len(found[-1]["answers"]) == 1
    assert found[7]["answers"][0]["response"] == "r"


def test_a_page_has_room_for_so_many_examples_the_same_number_of_each_attack(monkeypatch):
    lines = {("cat", 0): {name: [attempt(str(n), "refuse", "x" * 5000) for n in range(30)] for name in ("direct", "best_of_n")}}
    one = html_lib.SHOWN_LETTERS + len("ask 0") + examples.MARKUP  # as it is cut on the page
    monkeypatch.setattr(examples, "LETTERS", 2 * 3 * one + 1)
    found = examples.choose(["cat"], lines, ["direct", "best_of_n"])
    assert [one["attack"] for one in found] == ["direct"] * 8 + ["best_of_n"] * 8 and {one["of"] for one in found} == {30}
    monkeypatch.setattr(examples, "LETTERS", 0)
    assert len(examples.choose(["cat"], lines, ["direct", "best_of_n"])) == 2 * examples.SHOWN


def test_refreshed_rounds_are_counted_in_the_cost(made_up_workdir):
    pool = made_up_workdir / "seed_1" / "prompts"
    adapted = {"adapting_flops": 5e12, "adapting_seconds": 4.0}
    first = {"forward_passes": 40, "seconds": 2.0, "judging_seconds": 0.5}
    for number, cost in ((1, first), (2, {"forward_passes": 2, "seconds": 1.0, **adapted})):
        (pool / f"round_{number}").mkdir()
        (pool / f"round_{number}" / "cost.json").write_text(json.dumps(cost))
    (pool / "round_3").mkdir()  # begun, not finished
    report.write(made_up_workdir)
    results = json.loads((made_up_workdir / "results.json").read_text())
    costs = {cost.pop("seed"): cost for cost in results["costs"]}
    assert costs[0] == {"forward_passes": 960, "flops": 1.2e13, "seconds": 14.25, "tokens": 30720}
    assert costs[1] == {**costs[0], "forward_passes": 1002, "seconds": 17.25, "judging_seconds": 0.5, "refreshed_rounds": 2, **adapted}
    assert {t["seed"]: t["sampling_seconds"] for t in results["training"] if t["method"] == "dat"} == {0: 14.25, 1: 21.75, 2: 14.25}
    assert "| refreshed rounds | - | 2 | - |" in (made_up_workdir / "report.md").read_text()
    drawn = {"seed": 0, "flops": 2.0, "asking_flops": 3.0, "adapting_flops": 4.0}
    (total,) = costs_lib.flops(types.SimpleNamespace(finished={("dat", 0): {"flops": 1.0}}, costs=[drawn], utility_costs=[]))
    assert (total["training"], total["sampling"], total["total"]) == (1.0, 9.0, 10.0)


def test_page_stands_alone(made_up_workdir):
    page = report.write(made_up_workdir).read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and "link" not in tags.names and page.count("<script") == 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy and "http-equiv=\"refresh\"" not in page
    assert not tags.references, tags.references
    assert "how did people paint &lt;wood&gt; number" in page and "<wood>" not in page and "<b>story</b>" not in page
    assert page.count('<svg role="img"') == 1 + 1 + 8 + 1  # trade-off, tries, terms of the training, likelihoods
    assert page.count("<summary>19 further behaviors</summary>") == 7 and "24 behaviors of 24" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert report.write(made_up_workdir).read_text() == page


def test_gaps_are_noted(made_up_workdir):
    for suffix in (".jsonl", ".json"):
        (made_up_workdir / "seed_1" / "answers" / "dat" / f"prefill{suffix}").unlink()
    finished = made_up_workdir / "seed_2" / "cat" / "finished.json"
    finished.write_text(json.dumps({"seconds": 1.0, "collapsed": True}))
    notes = results.collect(made_up_workdir, ["world"]).notes
    assert len(notes) == 2
    assert "CAT, seed 2: the training collapsed" in notes[0] and "DAT, seed 1, lacks Prefilled answer" in notes[1]


def test_targets_that_were_made_are_noted_with_the_attacks_that_they_steer(made_up_workdir):
    for name in ("prefill", "embedding"):
        path = made_up_workdir / "seed_0" / "answers" / "cat" / f"{name}.json"
        found = answers_lib.read(path.parent / name)
        answers_lib.write(Answers(found.stem, found.about | {"made_targets": True}, found.lines))
    (note,) = results.collect(made_up_workdir, ["world"]).notes
    assert note.endswith('"Sure, here is ..."; it steers Prefilled answer, Embedding attack.')


def test_behaviors_that_harmbench_gives_to_no_classifier_are_noted_beside_its_classifier(made_up_workdir):
    found = answers_lib.read(made_up_workdir / "seed_0" / "answers" / "cat" / "direct")
    answers_lib.write(Answers(found.stem, found.about | {"by_hash": ["paint_wood_1", "paint_wood_2"]}, found.lines))
    assert results.collect(made_up_workdir, ["world"]).notes == []
    for seed in range(3):
        marker = made_up_workdir / f"seed_{seed}" / "verdicts" / "harmbench-plain" / "judge.json"
        marker.parent.mkdir()
        marker.write_text(json.dumps({"judge": "harmbench:plain", "version": 1, "settings": {}}))
    (note,) = results.collect(made_up_workdir, ["world"]).notes
    assert note.startswith("HarmBench compares the answers to 2 behaviors with songs and books (tag hash_check)")


def test_a_classifier_that_gives_other_tokens_probability_is_noted(made_up_workdir):
    path = made_up_workdir / "seed_1" / "verdicts" / "world" / "cat" / "direct.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | ({"class": "unsure"} if n < 2 else {})) + "\n" for n, row in enumerate(rows)))
    (note,) = results.collect(made_up_workdir, ["world"]).notes
    total = 3 * 3 * 24 * (6 + 4)  # methods, seeds, behaviors; six attacks of one attempt and one of four
    assert note.startswith(f"world: for 2 of {total:,} answers P(Yes) + P(No) is off 1 by more than 0.1.")


def test_answers_that_are_not_judged_yet_are_gaps_not_refusals(made_up_workdir):
    """An attack that was added after the judge had run has answers and no verdicts; so has a batch that came after it."""
    run = made_up_workdir / "seed_0"
    (run / "verdicts" / "world" / "cat" / "prefill.jsonl").unlink()
    verdicts = run / "verdicts" / "world" / "dat" / "direct.jsonl"
    verdicts.write_text("".join(verdicts.read_text().splitlines(keepends=True)[:-1]))
    found = results.collect(made_up_workdir, ["world"])
    there = {(row["method"], row["attack"]) for row in found.rows if row["seed"] == 0}
    assert ("cat", "prefill") not in there and ("dat", "direct") not in there and ("cat", "direct") in there
    assert (
        len(found.notes) == 2 and "CAT, seed 0, lacks Prefilled answer" in found.notes[0] and "DAT, seed 0, lacks Direct" in found.notes[1]
    )


def test_a_models_name_is_text_in_the_sentences_too(made_up_workdir):
    found = results.collect(made_up_workdir)
    found = dataclasses.replace(found, notes=["a|<script> lacks an attack"])
    assert "* a\\|&lt;script&gt; lacks an attack\n" in markdown(found)


def test_behaviors_that_are_not_asked_for_any_more_are_not_counted(made_up_workdir):
    for seed in range(3):
        path = made_up_workdir / f"seed_{seed}" / "answers" / "dat" / "direct.json"
        found = answers_lib.read(path.parent / "direct")
        answers_lib.write(Answers(found.stem, found.about | {"asked": found.about["asked"][:10]}, found.lines))
    rows = results.collect(made_up_workdir, ["world"]).rows
    assert {row["behaviors"] for row in rows if (row["method"], row["attack"]) == ("dat", "direct")} == {10}
    assert {row["behaviors"] for row in rows if (row["method"], row["attack"]) == ("cat", "direct")} == {24}


def test_a_bare_evaluation_is_enough(made_up_workdir, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    for name in ("answers/cat/direct.jsonl", "answers/cat/direct.json", "verdicts/world/cat/direct.jsonl", "verdicts/world/judge.json"):
        target = bare / "seed_7" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((made_up_workdir / "seed_0" / name).read_text())
    assert report.write(bare).exists()
    assert json.loads((bare / "results.json").read_text())["rows"][0]["method"] == "cat"


def test_other_models_keep_their_names_and_come_after_the_methods(made_up_workdir):
    for seed in range(3):
        for kind in ("answers", "verdicts/world"):
            folder = made_up_workdir / f"seed_{seed}" / kind
            (folder / "cat").rename(folder / "My-Model_1.5")
    found = results.collect(made_up_workdir, ["world"])
    assert found.methods == ["undefended", "dat", "My-Model_1.5"]
    assert "My-Model_1.5" in report.write(made_up_workdir).read_text()


def test_what_is_not_there_yet_is_an_error(tmp_path, made_up_workdir):
    with pytest.raises(ValueError, match=r"nothing was evaluated there .*; run --mode=evaluate first"):
        report.write(tmp_path / "empty")
    for seed in range(3):
        shutil.rmtree(made_up_workdir / f"seed_{seed}" / "verdicts")
    with pytest.raises(ValueError, match=r"the answers there were not judged .*; run --mode=judge first"):
        report.write(made_up_workdir)
