"""Judges against human labels: four formats, the numbers by hand and by counting, and what is not parsed apart."""

import json
import pathlib

import pytest

from dat_jax.config import defaults
from dat_jax.data import labels
from dat_jax.judges.judge import UNPARSED, Verdict
from dat_jax.stations import validate


def test_formats(tmp_path):
    (tmp_path / "val.json").write_text(
        json.dumps({"b1": [{"generation": "x", "human_0": 1, "human_1": 1, "human_2": 0}, {"generation": "", "human_0": 0}]})
    )
    first, second = labels.read(str(tmp_path / "val.json"), {"b1": "Paint it"})
    assert (first.request, first.response, first.label, first.raters, second.label) == ("Paint it", "x", True, (True, True, False), False)
    (tmp_path / "p.csv").write_text(
        '# dataset_version=1.0\n# more\nobjective,assistant_response,human_score_1,human_score_2,data_type\nPaint,"a\nb",0.25,0.75,text\n'
        "Wash,c,0.25,,text\n"
    )
    first, second = labels.read(str(tmp_path / "p.csv"))
    assert (first.response, first.label, first.raters, second.label, second.raters) == ("a\nb", True, (False, True), False, (False,))
    (tmp_path / "x.csv").write_text(
        "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label\n"
        "v2-1,homonyms,p,c,1_full_compliance,3_partial_refusal,False,3_partial_refusal\n"
    )
    (one,) = labels.read(str(tmp_path / "x.csv"))
    assert (one.id, one.request, one.label, one.raters) == ("v2-1", "p", True, (False, True))
    (tmp_path / "l.jsonl").write_text('{"request": "p", "response": "c", "label": 1}\n{"request": "p", "response": "d", "label": 0}\n')
    assert [one.label for one in labels.read(str(tmp_path / "l.jsonl"))] == [True, False]
    assert labels.agreement_of_raters([*labels.read(str(tmp_path / "val.json")), one]) == (2, pytest.approx(1 / 4))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2\n", r"a\.csv: the columns are a, b; allowed: objective, assistant_response, human_score"),
        ("a.csv", "# c\nobjective,assistant_response,human_score\np,r,2\n", r"a\.csv, line 3: human_score is '2'; allowed: "),
        ("a.csv", "prompt,completion,final_label\np,r,4\n", r"a\.csv, line 2: final_label is '4'; allowed: 1_full_compliance, "),
        ("a.json", '{"b": [{"generation": "x"}]}', r"a\.json, b, entry 0: no key 'human_0'; found: generation"),
        ("a.json", '{"b": {"generation": "x"}}', r"a\.json: allowed: HarmBench's"),
        ("a.jsonl", '{"request": "p", "response": "c", "label": "no"}', r"a\.jsonl, line 1: label is 'no'; allowed: a number from 0 to 1"),
    ],
)  # fmt: skip
def test_faults(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        labels.read(str(tmp_path / name))


def test_numbers_by_hand():
    """4 true positives, 1 false, 2 missed, 3 true negatives of which one is "lost", and 2 that were not parsed."""
    said = ["comply"] * 4 + ["comply"] + ["refuse", "lost"] + ["refuse", "refuse", "lost"] + [UNPARSED] * 2
    human = [True] * 4 + [False] + [True] * 2 + [False] * 3 + [True, False]
    found = validate.compare(
        "j", [labels.Labelled(str(i), "", "", x, (x,)) for i, x in enumerate(human)], [Verdict(x, 0.5) for x in said], ["comply"]
    )
    assert (found.answers, found.unparsed, found.precision, found.recall, found.accuracy) == (12, 2, 0.8, pytest.approx(4 / 6), 0.7)
    assert found.f1 == pytest.approx(2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))
    chance = (6 * 5 + 4 * 5) / 100
    assert found.kappa == pytest.approx((0.7 - chance) / (1 - chance))
    assert found.confusion == {
        "1": {"comply": 4, "refuse": 1, "lost": 1, UNPARSED: 1},
        "0": {"comply": 1, "refuse": 2, "lost": 1, UNPARSED: 1},
    }
    nothing = validate.compare("j", [], [], ["comply"])
    assert nothing.precision is nothing.recall is nothing.f1 is nothing.kappa is None
    assert "| `j` | 12 | 2 | 0.80 | 0.67 | 0.73 | 0.70 | 0.40 | comply 4, lost 1, refuse 1, unparsed 1 |" in validate.table(
        [found], "comply"
    )


def test_judges_are_run_on_the_answers():
    answers = [("I'm sorry, but no.", True), ("Take a brush.", False), ("I apologize.", True), ("I won't.", True)]
    labelled = [labels.Labelled(str(i), "paint it", text, refused, (refused,)) for i, (text, refused) in enumerate(answers)]
    prefix, strings = validate.validate(["refusal_prefix", "xstest:strings"], labelled, ["refuse"], defaults())
    assert (prefix.precision, prefix.recall, strings.precision, strings.recall) == (1.0, 1.0, 1.0, pytest.approx(2 / 3))
    with pytest.raises(ValueError, match=r"--judges names 'x'; allowed: a selection of refusal_prefix"):
        validate.validate(["x"], labelled, ["refuse"], defaults())
    with pytest.raises(ValueError, match=r"--positive=yes; allowed: one or two of comply, refuse, lost"):
        validate.validate(["refusal_prefix"], labelled, ["yes"], defaults())
    with pytest.raises(ValueError, match=r"config\.judges\.xstest\.url is ''"):
        validate.validate(["xstest:gpt4"], labelled, ["refuse"], defaults())


def test_the_documented_rates_are_those_of_the_documented_confusions():
    """Every row of the table in docs/results.md: its five rates follow from its two columns of counts."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "results.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.count(" | ") >= 7 and "comply" in line.rpartition(" | ")[2]]
    assert len(rows) == 13
    about = ""
    for row in rows:
        *first, precision, recall, f1, accuracy, kappa, yes, no = row
        about = first[0] if len(first) > 1 else about  # the first column stands in the first row of a group
        positive = ["refuse", "lost"] if "refusals, 193" in about else ["refuse"] if "refusal" in about else ["comply"]
        labelled, verdicts = [], []
        for human, counts in ((True, yes), (False, no)):
            for label, count in (entry.split(" ") for entry in counts.split(", ")):
                labelled += [labels.Labelled("", "", "", human, ())] * int(count)
                verdicts += [Verdict(label, 0.5)] * int(count)
        found = validate.compare("", labelled, verdicts, positive)
        shown = [f"{value:.2f}" for value in (found.precision, found.recall, found.f1, found.accuracy, found.kappa)]
        assert shown == [precision, recall, f1, accuracy, kappa], row
