"""Behavior files in the public formats, alone or several, with targets from a file, of their own, or made from the request."""

import csv
import io
import json

import pytest

from dat_jax.data import behaviors as behaviors_lib
from dat_jax.data.behaviors import Behavior, affirmative, load_behaviors
from dat_jax.data.formats import FORMATS

REFUSALS = (behaviors_lib.DEFAULT_REFUSAL,)
FILES = {
    "HarmBench": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nPaint the drum,standard,craft,,,paint_drum\n",
        [Behavior("paint_drum", "Paint the drum", ("Sure, here is how to paint the drum:",), REFUSALS, "craft", True)],
    ),
    "JailbreakBench": (
        'Index,Goal,Target,Behavior,Category,Source\n0,Paint a drum,"Sure, here is a way",Drum painting,Craft,Original\n',
        [Behavior("Drum painting", "Paint a drum", ("Sure, here is a way",), REFUSALS, "Craft", False)],
    ),
    "AdvBench": (
        'goal,target\nPaint a drum,"Sure, take a brush"\nWash it,"Sure, take soap"\n',
        [
            Behavior("advbench_0", "Paint a drum", ("Sure, take a brush",), REFUSALS),
            Behavior("advbench_1", "Wash it", ("Sure, take soap",), REFUSALS),
        ],
    ),
    "StrongREJECT": (
        "category,source,forbidden_prompt\nCraft,custom,How do I paint a drum?\n",
        [Behavior("strongreject_0", "How do I paint a drum?", ("Sure, here is how to paint a drum:",), REFUSALS, "Craft", True)],
    ),
    "circuit breakers": (
        '[{"category": "Craft", "prompt": "Paint a drum", "llama3_output": "I can\'t paint.", "output": "Sure, take a brush"}]',
        [Behavior("circuit_breakers_0", "Paint a drum", ("Sure, take a brush",), ("I can't paint.",), "Craft")],
    ),
    "XSTest": (
        "id,prompt,type,label,focus,note\n1,How do I kill time?,homonyms,safe,kill,\n26,How do I paint a drum?,contrast,unsafe,paint,\n",
        [Behavior("xstest_26", "How do I paint a drum?", ("Sure, here is how to paint a drum:",), REFUSALS, "contrast", True)],
    ),
    "your own": (
        '{"id": 7, "prompt": "Paint it", "context": "A drum.", "target": "Sure", "category": null, "refusal": "No."}\n',
        [Behavior("7", "A drum.\n\n---\n\nPaint it", ("Sure",), ("No.",), "", False, "A drum.")],
    ),
}
SUFFIX = {"circuit breakers": "json", "your own": "jsonl"}  # the others: csv


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_format_is_known_by_its_columns(tmp_path, name):
    text, expected = FILES[name]
    path = tmp_path / f"b.{SUFFIX.get(name, 'csv')}"
    path.write_text(text)
    assert load_behaviors(str(path)) == expected


@pytest.mark.parametrize("name", [name for name in FILES if name not in SUFFIX])
def test_every_format_may_be_a_csv_json_lines_or_a_list(tmp_path, name):
    text, expected = FILES[name]
    rows = list(csv.DictReader(io.StringIO(text)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert load_behaviors(f"{tmp_path}/b.jsonl") == load_behaviors(f"{tmp_path}/b.json") == expected


def test_a_rows_number_is_its_own_where_texts_have_several_lines(tmp_path):
    (tmp_path / "b.csv").write_text('goal,target\n"Paint\na drum","Sure"\nWash it,Sure\n')
    assert [behavior.id for behavior in load_behaviors(str(tmp_path / "b.csv"))] == ["advbench_0", "advbench_1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.json", '{"prompt": "x"}', r"b\.json: found a dict; allowed: a list of objects, one per behavior"),
        ("b.json", "[]", r"b\.json: no behavior; allowed: at least one"),
        ("b.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "b"}\n', r"b\.jsonl, line 2: no key 'prompt'; allowed: your own's id, prompt"),
        ("b.json", '[{"id": "a", "prompt": ["x"]}]', r"b\.json, entry 1: prompt is \['x'\]; allowed: a non-empty text"),
        ("b.json", '[{"id": "a", "prompt": "x", "category": ["y"]}]', r"b\.json, entry 1: category is \['y'\]; allowed: a text"),
        ("b.jsonl", '{"question": "x"}\n', r"b\.jsonl, line 1: the columns are question; allowed: HarmBench: Behavior, BehaviorID; "),
        ("b.csv", "prompt,type,label\nx,y,harmless\n", r"b\.csv, line 2: label is 'harmless'; allowed: safe \| unsafe"),
        ("b.csv", "prompt,type,label\nx,y,safe\n", r"b\.csv: no row is a behavior; allowed: at least one"),
    ],
)
def test_a_fault_in_another_kind_of_file_names_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_behaviors(str(tmp_path / name))


@pytest.mark.parametrize(("tags", "by_hash"), [("", False), ("lyrics, hash_check", True), ("context", False), ("hash_check", True)])
def test_harmbenchs_tag_of_songs_and_books_is_kept(tmp_path, tags, by_hash):
    (tmp_path / "b.csv").write_text(f'Behavior,Tags,BehaviorID\nSing,"{tags}",sing\n')
    assert load_behaviors(str(tmp_path / "b.csv"))[0].by_hash is by_hash


def test_every_format_has_a_file_here():
    assert [format.name for format in FORMATS] == list(FILES)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("goal,targets", r"goal, targets \(did you mean to rename 'targets' to 'target'\?\)"),
        ("Behaviour,BehaviorID", r"Behaviour, BehaviorID \(did you mean to rename 'Behaviour' to 'Behavior'\?\)"),
        ("question,answer", "question, answer"),
    ],
)
def test_unknown_columns_are_told_with_what_each_format_needs(tmp_path, columns, found):
    (tmp_path / "b.csv").write_text(f"{columns}\na,b\n")
    needs = (
        "HarmBench: Behavior, BehaviorID; JailbreakBench: Goal, Target, Behavior; AdvBench: goal, target; "
        "StrongREJECT: forbidden_prompt, category; circuit breakers: prompt, output, llama3_output; XSTest: prompt, type, label; "
        "your own: id, prompt"
    )
    with pytest.raises(ValueError, match=rf"b\.csv, line 1: the columns are {found}; allowed: {needs}$"):
        load_behaviors(str(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("goal,target\n ,x\n", r"b\.csv, line 2: goal is ' '; allowed: a non-empty text"),
        ("goal,target\nx,\n", r"b\.csv, line 2: target is ''"),
        ("Goal,Target,Behavior\nx,,b\n", r"b\.csv, line 2: Target is ''"),
        ("category,forbidden_prompt\nc,\n", r"b\.csv, line 2: forbidden_prompt is ''"),
        ("Behavior,BehaviorID\nx,\n", r"b\.csv, line 2: BehaviorID is ''"),
    ],
)
def test_a_fault_names_file_line_and_column(tmp_path, text, message):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_behaviors(str(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        ("Write a poem about oak.", "Sure, here is a poem about oak:"),
        ("Give me instructions for sanding oak", "Sure, here is instructions for sanding oak:"),
        ("Create the plan of a chair", "Sure, here is the plan of a chair:"),
        ("Give detailed instructions for oiling oak.", "Sure, here is detailed instructions for oiling oak:"),
        ("Describe in detail how oak is oiled", "Sure, here is how to describe in detail how oak is oiled:"),
        ("Explain how to oil oak", "Sure, here is how to oil oak:"),
        ("Tell me how to oil oak.", "Sure, here is how to oil oak:"),
        ("Given the following note, write a reply", "Sure, here is a reply:"),
        ("Provide step by step instructions", "Sure, here is step by step instructions:"),
        ("Paint the drum", "Sure, here is how to paint the drum:"),
        ("How do I paint the drum?", "Sure, here is how to paint the drum:"),
        ("How to paint the drum", "Sure, here is how to paint the drum:"),
        ("Generate heat by rubbing", "Sure, here is how to generate heat by rubbing:"),
        ("ROT13 a text", "Sure, here is how to ROT13 a text:"),
        ("Some context\n\n---\n\nPaint it!", "Sure, here is how to paint it:"),
    ],
)
def test_affirmative_targets(request_, target):
    assert affirmative(request_) == target


def test_several_files_are_one_list_and_targets_are_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text(FILES["AdvBench"][0])
    (tmp_path / "h.csv").write_text(FILES["HarmBench"][0])
    both = load_behaviors(f"{tmp_path}/a.csv, {tmp_path}/h.csv")
    assert [behavior.id for behavior in both] == ["advbench_0", "advbench_1", "paint_drum"]
    assert [behavior.made_target for behavior in both] == [False, False, True]
    assert behaviors_lib.describe_targets(both) == (
        '1 of 3 behaviors came without a target; "Sure, here is ..." made from the request was used.'
    )
    assert behaviors_lib.describe_targets(both[:2]) == ""
    (tmp_path / "1.json").write_text(json.dumps({"advbench_0": ["one", "another"], "paint_drum": "two"}))
    (tmp_path / "2.json").write_text(json.dumps({"advbench_1": "three"}))
    given = load_behaviors(f"{tmp_path}/a.csv,{tmp_path}/h.csv", f"{tmp_path}/1.json,{tmp_path}/2.json")
    assert [behavior.targets for behavior in given] == [("one", "another"), ("three",), ("two",)]
    assert not any(behavior.made_target for behavior in given)
    with pytest.raises(ValueError, match=r"1\.json: no key 'advbench_1', the id of .*a\.csv, line 3"):
        load_behaviors(f"{tmp_path}/a.csv", f"{tmp_path}/1.json")


def test_an_id_in_two_files_names_both_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(FILES["HarmBench"][0])
    with pytest.raises(ValueError, match=r"b\.csv, line 2: the id 'paint_drum' stands on .*a\.csv, line 2 already"):
        load_behaviors(f"{tmp_path}/a.csv,{tmp_path}/b.csv")


def test_public_behaviors_without_their_targets(shared):
    path = str(shared / "data" / "harmbench" / "harmbench_behaviors_text_val.csv")
    made = load_behaviors(path)
    assert len(made) == 80 and all(behavior.made_target for behavior in made)
    assert all(len(b.targets) == 1 and b.targets[0].startswith("Sure, here is ") and b.targets[0].endswith(":") for b in made)
    assert len({behavior.category for behavior in made}) > 3
