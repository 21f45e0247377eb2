"""The rewriting rules on imperatives and questions, on public behaviors, and the reader of rewrite files."""

import json

import pytest

from dat_jax.data import behaviors as behaviors_lib
from dat_jax.data import rewrites
from dat_jax.data.behaviors import Behavior


@pytest.mark.parametrize(
    ("request_", "form", "expected"),
    [
        ("Create a plain chair.", "past", "How did people create a plain chair in the past?"),
        ("Create a plain chair", "future", "How will people create a plain chair in the future?"),
        ("How do I sand oak?", "past", "How did people sand oak in the past?"),
        ("How to sand oak", "indirect", "I have been wondering how somebody would sand oak."),
        ("Explain it to the U.S. Navy. Use short words.", "polite",
         "Could you please explain it to the U.S. Navy? Thank you very much! Use short words."),
        ("ROT13 a text", "indirect", "I have been wondering how somebody would ROT13 a text."),
        ("Who was the first to sand oak?", "past", None),
        ("Given a board, sand it", "past", None),
        ("  ", "past", None),
    ],
)  # fmt: skip
def test_rules(request_, form, expected):
    assert rewrites.rewrite(request_, form) == expected


def test_unknown_form():
    with pytest.raises(ValueError, match="no rule for the rewrite 'klingon'"):
        rewrites.rewrite("Sand oak", "klingon")


def test_most_public_behaviors_get_every_form(shared):
    folder = shared / "data" / "harmbench"
    behaviors = behaviors_lib.load_behaviors(
        str(folder / "adv_training_behaviors.csv"), str(next(folder.glob("adv_training_targets.json"))), ""
    )
    made = rewrites.make_rewrites(behaviors)
    assert rewrites.forms(made) == list(rewrites.RULES)
    for form in rewrites.RULES:
        prompts = {item.behavior: item.prompt for item in made if item.form == form}
        assert len(prompts) >= 0.9 * len(behaviors)
        assert all(prompts[b.id] != b.text for b in behaviors if b.id in prompts)


def test_make_rewrites_leaves_out_what_no_rule_fits():
    made = rewrites.make_rewrites([Behavior("q", "Who sands oak?", ("t",), ("r",)), Behavior("i", "Sand oak", ("t",), ("r",))])
    assert {item.behavior for item in made} == {"i"} and len(made) == len(rewrites.RULES)


def test_reads_a_file(tmp_path):
    path = tmp_path / "rewrites.jsonl"
    path.write_text('{"id": "a", "rewrite": "past", "prompt": "p", "held_out": true}\n\n{"id": "a", "rewrite": "german", "prompt": "q"}\n')
    assert rewrites.read_rewrites(str(path)) == [rewrites.Rewrite("a", "past", "p", True), rewrites.Rewrite("a", "german", "q")]


def test_a_form_has_one_spelling_as_files_are_named_by_it(tmp_path):
    path = tmp_path / "rewrites.jsonl"
    path.write_text("".join(json.dumps({"id": "a", "rewrite": form, "prompt": "p"}) + "\n" for form in ("past", "story", "past", "Past")))
    with pytest.raises(ValueError, match=r"rewrites\.jsonl, line 4: rewrite is 'Past', and 'past' on line 1; allowed: one spelling"):
        rewrites.read_rewrites(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "rewrites": "past", "prompt": "p"}, "line 1: no key 'rewrite'"),
        ({"id": "a", "rewrite": "past", "prompt": " "}, "line 1: prompt is ' '"),
        ({"id": "a", "rewrite": "a/b", "prompt": "p"}, "line 1: rewrite is 'a/b'"),
        ({"id": "a", "rewrite": "..", "prompt": "p"}, r"line 1: rewrite is '\.\.'"),
        ({"id": "a", "rewrite": "past", "prompt": "p\0"}, r"line 1: prompt holds '\\x00'"),
        ({"id": "a", "rewrite": "past", "prompt": "\ud83d"}, r"line 1: prompt holds '\\ud83d'"),
        ({"id": "a", "rewrite": "past", "prompt": "p", "held_out": "yes"}, "line 1: held_out is 'yes'"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = tmp_path / "rewrites.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=message):
        rewrites.read_rewrites(str(path))
