"""What the comparison of prompt sources counts, and how it is compared with labels made by hand."""

import importlib.util
import json
import math
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "prompt_sources.py"
SPEC = importlib.util.spec_from_file_location("prompt_sources", SCRIPT)
sources = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sources)


def row(source, behavior, prompt, on_topic, label="refuse"):
    return {"source": source, "behavior": behavior, "request": "r", "prompt": prompt, "on_topic": on_topic, "label": label}


def test_bleu_is_that_of_its_formula():
    assert sources.bleu(["a", "b", "c", "d", "e"], [["a", "b", "c", "d", "e"]]) == pytest.approx(1.0)
    assert sources.bleu(["a", "b"], [["c", "d"]]) == 0.0
    # 3 of 4 words, 2 of 3 bigrams (+1), 1 of 2 trigrams (+1), 0 of 1 fourgrams (+1); the reference has 6 words.
    by_hand = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 4)
    assert sources.bleu(["a", "b", "c", "x"], [["a", "b", "c", "d", "e", "f"]]) == pytest.approx(by_hand)
    assert sources.self_bleu(["Paint a red fence", "paint a red fence"]) == pytest.approx(1.0)


def test_a_source_is_counted_on_one_prompt_for_each_behavior_where_sources_are_compared():
    rows = [row("s", "1", "paint the the fence", True, "comply"), row("s", "1", "wash", False), row("s", "2", "paint a door", True)]
    numbers = dict(zip(sources.COLUMNS, sources.line_of(rows)))
    assert numbers["prompts"] == 3 and numbers["on topic"] == pytest.approx(2 / 3) and numbers["stutter"] == pytest.approx(1 / 3)
    assert numbers["dist-1"] == pytest.approx(5 / 7)  # paint the fence a door, of seven words
    assert numbers["answered"] == pytest.approx(1 / 3) and numbers["behaviors answered"] == 0.5


def test_labels_made_by_hand_are_compared_by_source(tmp_path):
    rows = [row("s", "1", "a", True), row("s", "2", "a", True), row("t", "1", "b", False), row("t", "1", "b", False)]
    drawn = sources.to_label(rows, 100)
    assert sorted((line["behavior"], line["prompt"]) for line in drawn) == [("1", "a"), ("1", "b"), ("2", "a")]
    assert all("source" not in line for line in drawn)
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in drawn))
    with pytest.raises(ValueError, match=r"labels.jsonl, line 1: on_topic is None; allowed: true or false"):
        sources.validated(rows, path)
    path.write_text("".join(json.dumps(line | {"on_topic": line["behavior"] == "1"}) + "\n" for line in drawn))
    first, second, whole = sources.validated(rows, path)
    assert "2 prompts: on topic by hand 1, by check 2; agree 0.50, kappa 0.00" in first
    assert "1 prompts: on topic by hand 1, by check 0; agree 0.00" in second and "3 prompts" in whole and "agree 0.33" in whole
