"""What the report says of likelihoods, tasks, classes, categories, tests and tries, from a workdir of made-up numbers."""

import json

import pytest

from dat_jax.data import answers as answers_lib
from dat_jax.data.answers import Answers, answer_checksum, item_of
from dat_jax.report import figures
from dat_jax.report.markdown import markdown
from dat_jax.report.results import as_json, collect


def write(stem, about, lines):
    done = dict.fromkeys((item_of(line) for line in lines), "")
    # A line of a measure names it, as the station writes it.
    lines = [line | ({"measure": about["measure"]} if "measure" in about else {}) for line in lines]
    answers_lib.write(Answers(stem, about | {"done": done, "asked": list(done)}, lines))


def test_the_report_has_them_all(made_up_workdir):
    for seed in range(3):
        run = made_up_workdir / f"seed_{seed}"
        for place, method in enumerate(("cat", "dat")):
            folder = run / "measures" / method
            write(folder / "chats", {"measure": "chats"}, [{"id": str(i), "nll": 8.0, "kl": place * 2.0, "tokens": 4} for i in range(5)])
            lines = [{"id": str(i), "acc": i < 3 - place, "acc_norm": True, "acc_bytes": False} for i in range(4)]
            write(folder / "task-mmlu", {"measure": "task", "task": "mmlu"}, lines)
            found = answers_lib.read(run / "answers" / method / "direct")
            found.about["categories"] = {line["behavior"]: "<wood>" if i % 2 else "stone" for i, line in enumerate(found.lines)}
            found.lines = [line | {"refusal_nll": 1.0 + place, "target_nll": 3.0} for line in found.lines]
            answers_lib.write(found)
            for harmless in ("benign", "borderline"):
                asked = answers_lib.read(run / "answers" / method / "utility" / harmless)
                asked.lines = [line | {"refusal_nll": 1.5} for line in asked.lines]
                answers_lib.write(asked)
            keys = list(dict.fromkeys(answer_checksum(line) for line in asked.lines))
            rows = [{"answer": key, "label": "refuse", "score": 0.5, "class": "3_partial_refusal"} for key in keys]
            verdicts = run / "verdicts" / "xstest-gpt4"
            (verdicts / method / "utility").mkdir(parents=True)
            (verdicts / method / "utility" / "borderline.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (verdicts / "judge.json").write_text(json.dumps({"judge": "xstest:gpt4", "version": 1, "settings": {}}))
    results = collect(made_up_workdir, ["world"])
    content = as_json(results, {})
    kept = {row["measure"]: row for row in content["likelihoods"] if row["method"] == "dat" and row["seed"] == 0}
    assert (kept["heldout_nll"]["value"], kept["heldout_kl"]["value"]) == (2.0, 0.5) and set(kept) == {"heldout_nll", "heldout_kl"}
    (row,) = [r for r in content["utility"] if (r["method"], r["measure"], r["seed"]) == ("dat", "acc:mmlu", 1)]
    assert (row["prompts"], row["count"], row["rate"]) == (4, 2, 0.5)
    assert [r["rate"] for r in content["utility_over_seeds"] if r["measure"] == "direct_refusal"][-1] == pytest.approx(1.0, abs=0.1)
    (row,) = [r for r in content["classes"] if r["method"] == "cat" and r["seed"] == 0]
    assert row["classes"] == {"1_full_compliance": 0, "2_full_refusal": 0, "3_partial_refusal": 40} and row["unparsed"] == 0
    wood = [r for r in content["categories"] if (r["category"], r["method"], r["attack"]) == ("<wood>", "dat", "worst_case")]
    assert wood[0]["behaviors"] == 12
    test = next(r for r in content["paired_tests"] if (r["first"], r["second"], r["of"]) == ("dat", "undefended", "rewrite:past"))
    assert test["p_holm"] < 0.001 and test["high"] < 0 and test["items"] == 24
    assert {r["method"] for r in content["over_tries"]} == {"undefended", "cat", "dat"} and content["over_tries"][0]["tries"] == 4
    assert len(content["averages"]) == 9 and all(r["average"] <= r["worst_case"] for r in content["averages"])
    text = markdown(results)
    for section in ("Multiple-choice tasks", "Likelihoods", "Classes of answers", "By category", "Paired tests", "Success over tries",
                    "Average and worst case", "Likelihoods under attack", "Attacks told from harmless prompts"):  # fmt: skip
        assert f"## {section}" in text, section
    assert "<wood>" not in text and "&lt;wood&gt;" in text and "mmlu: right, by the likeliest choice" in text
    row = next(line for line in text.splitlines() if "refused, as 5.0 % of the harmless" in line)
    assert "| - | 100.0 % [100.0 to 100.0] | 0.0 % [0.0 to 0.0] |" in row  # a refusal is likelier after CAT's attacks, and not after DAT's
    assert "Held-out chats, divergence from the model before training" in text and "| 0.500 [0.500 to 0.500] |" in text


def test_an_attack_with_variants_has_a_curve_of_each(made_up_workdir, answered):
    """Its file is called tense:past, the row of ATTACKS that says it has tries is tense; one that makes a single try has none."""
    lines, labels = [], []
    for behavior, broken in (("a", "0010"), ("b", "0000")):
        lines += [
            {"method": "dat", "attack": "tense:past", "surface": "text", "seed": 0, "behavior": behavior, "prompt": f"try {n}",
             "prefill": "", "response": f"{behavior} {n}"} for n in range(4)
        ]  # fmt: skip
        labels += ["comply" if mark == "1" else "refuse" for mark in broken]
    about = {"title": "Another tense", "surface": "text", "held_out": False, "made_targets": False}
    answered(made_up_workdir / "seed_0", "dat/tense-past", about | {"attack": "tense:past"}, lines, labels)
    once = [line | {"attack": "tense:future"} for line in lines[::4]]
    answered(made_up_workdir / "seed_0", "dat/tense-future", about | {"attack": "tense:future"}, once, labels[::4])
    results = collect(made_up_workdir, ["world"])
    assert set(results.tries) == {"tense:past", "best_of_n"} and results.tries["tense:past"]["dat", 0][0] == [False, False, True, False]
    (row,) = [row for row in results.over_tries if row["attack"] == "tense:past"]
    assert [point["rate"] for point in row["points"]] == [0.125, 0.25, 0.5]
    assert "Share of behaviors broken over attempts, tense:past" in figures.more_tries(results, "tense:past")
    assert "| Another tense: past | DAT | 1: 12.5 %, 2: 25.0 %, 4: 50.0 % |" in markdown(results)
