"""Bad input: one ValueError each, naming file, line and key."""

import dataclasses
import json
import re

import pytest

from dat_jax.data.behaviors import load_behaviors
from dat_jax.data.chats import first_exchanges, load_chats
from dat_jax.data.prompts import PromptRecord, read_records, write_records

BEHAVIORS = 'Behavior,BehaviorID,ContextString\nPaint the drum,paint_drum,\n"Wash, then fold",wash,Some context\n'
TARGETS = {"paint_drum": ["Sure, take a brush", "", "Sure, take a brush"], "wash": "Sure, take soap"}
REFUSALS = 'Behavior,Safe_Response\nPaint the drum,No.\n"Wash, then fold",Never.\n"Wash, then fold",I will not.\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.csv").write_text(BEHAVIORS)
    (tmp_path / "t.json").write_text(json.dumps(TARGETS))
    (tmp_path / "r.csv").write_text(REFUSALS)
    return tmp_path


def load(folder, refusals="r.csv"):
    return load_behaviors(str(folder / "b.csv"), str(folder / "t.json"), str(folder / refusals) if refusals else "")


def test_behaviors_with_targets_context_and_refusals(folder):
    paint, wash = load(folder)
    assert paint.targets == ("Sure, take a brush",)  # the empty and the repeated one are dropped
    assert wash.text == "Some context\n\n---\n\nWash, then fold"
    assert wash.refusals == ("Never.", "I will not.")
    assert load(folder, "")[0].refusals == ("I'm sorry, but I can't help with that.",)


def test_public_files(shared):
    harmbench = shared / "data" / "harmbench"
    train = load_behaviors(
        str(harmbench / "adv_training_behaviors.csv"),
        str(harmbench / "adv_training_targets.json"),
        str(harmbench / "adv_training_behaviors_safe_responses_longer.csv"),
    )
    assert len(train) == 100
    assert sum(len(b.targets) for b in train) == 1200 - 11 - 27  # 11 empty targets; of the 30 repeats 3 are empty ones
    assert len({b.refusals for b in train}) == 100
    val = load_behaviors(str(harmbench / "harmbench_behaviors_text_val.csv"), str(harmbench / "harmbench_targets_text.json"))
    assert len(val) == 80 and any("\n\n---\n\n" in b.text for b in val)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "b.csv",
            "Behaviour,BehaviorID\na,b\n",
            r"b\.csv, line 1: the columns are Behaviour, BehaviorID \(did you mean to rename 'Behaviour' to 'Behavior'\?\); allowed: ",
        ),
        ("b.csv", BEHAVIORS + "Again,wash,\n", r"b\.csv, line 4: the id 'wash' stands on .*b\.csv, line 3 already"),
        ("b.csv", BEHAVIORS + ",x,\n", r"b\.csv, line 4: Behavior is ''"),
        ("b.csv", BEHAVIORS + "a,b\n", r"b\.csv, line 4: 2 fields; allowed: the header's 3"),
        ("b.csv", "", r"b\.csv: the file is empty"),
        ("b.csv", "Behavior,BehaviorID\n", r"b\.csv: a header and no rows"),
        ("t.json", '{"paint_drum": "x"}', r"t\.json: no key 'wash', the id of .*b\.csv, line 3"),
        ("t.json", '{"paint_drum": "x", "wash": [""]}', r"t\.json, key 'wash': no target with text"),
        ("t.json", '{"paint_drum": 3}', r"t\.json, key 'paint_drum': found 3; allowed: a text or a list"),
        ("t.json", '{"paint_drum":\n}', r"t\.json, line 2: not JSON"),
        ("r.csv", "Behavior,Safe_Response\nPaint the drum,No.\n", r"r\.csv: no row whose Behavior is that of .*b\.csv, line 3"),
    ],
)
def test_bad_behaviors(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_bytes_that_are_not_utf8(folder):
    (folder / "b.csv").write_bytes(b"Behavior,BehaviorID\nok,a\nbad \xff,b\n")
    with pytest.raises(ValueError, match=r"b\.csv, line 3: byte 0xff is not UTF-8"):
        load(folder)


def test_a_missing_file_suggests_a_near_one(folder):
    with pytest.raises(ValueError, match=r"bb\.csv: no such file; did you mean b\.csv\?"):
        load_behaviors(str(folder / "bb.csv"), str(folder / "t.json"))


CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "bye"}]}


def test_chats_from_jsonl_parquet_and_arrayrecord_agree(tmp_path):
    import pyarrow
    import pyarrow.parquet

    from dat_jax.data import prepare

    rows = [CHAT, {"messages": [{"role": "system", "content": "be kind"}, *CHAT["messages"]]}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    chats = load_chats(str(tmp_path / "c.jsonl"))
    assert [len(c) for c in chats] == [2, 3]  # cut after the last assistant message
    assert load_chats(str(tmp_path / "c.parquet")) == chats
    prepare.write(chats, str(tmp_path / "dataset"))
    assert load_chats(str(tmp_path / "dataset")) == chats


@pytest.mark.parametrize(
    "line, message",
    [
        ({"mesages": []}, r"line 2: no key 'messages'; found: mesages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"line 2: role 'bot'; allowed: system, user, assistant"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"line 2: no assistant message"),
        ({"messages": [{"role": "user", "contents": "x"}]}, r"line 2: no key 'content'"),
        ({"messages": "hi"}, r"line 2: messages is a str"),
        ({"prompt": "a", "response": " "}, r"line 2: content is ' '"),
        ([1], r"line 2: found list; allowed: an object"),
        *(
            (
                {"messages": [{"role": role, "content": "x"} for role in roles.split(", ")]},
                rf"line 2: the roles are {roles}; allowed: system first or not at all, then user and assistant in turn",
            )
            for roles in (
                "assistant, user, assistant",
                "user, user, assistant",
                "user, assistant, assistant",
                "user, system, assistant",
                "user, assistant, system, user, assistant",
                "system, system, user, assistant",
                "system, assistant",
            )
        ),
    ],
)
def test_bad_chats(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_text(json.dumps(CHAT) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl, " + message):
        load_chats(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "a", "prompt": "b", "response": "c"}', "line 2: the key 'prompt' stands in one object more than once"),
        ("[" * 100_000 + "]" * 100_000, "line 2: lists or objects inside each other too deeply"),
        ('{"prompt": "a", "response": ' + "9" * 5000 + "}", "line 2: a number has more digits than are read"),
        ('{"prompt": "a", "response": "c"', "line 2: not JSON: "),
    ],
)
def test_json_that_means_two_things_or_nothing(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_text(json.dumps(CHAT) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl, " + message):
        load_chats(str(tmp_path / "c.jsonl"))


def test_a_column_that_stands_twice(folder):
    (folder / "b.csv").write_text("Behavior,BehaviorID,Behavior\na,b,c\n")
    with pytest.raises(ValueError, match=r"b\.csv, line 1: the column 'Behavior' stands there more than once"):
        load(folder)


def test_first_exchanges_without_repetition():
    said = [("system", "be kind"), ("user", " hello "), ("assistant", "hi"), ("user", "bye"), ("assistant", "bye")]
    chat = [{"role": role, "content": content} for role, content in said]
    assert first_exchanges([chat, chat, chat[3:]]) == [("hello", "hi"), ("bye", "bye")]


def test_prompt_records_come_back_as_written(tmp_path):
    record = PromptRecord("a", "wie geht\u2028das?", "so", 1, "sampler", {"steps": 4}, -3.5, 5, None, True)
    write_records(tmp_path / "p.jsonl", [record, record])
    assert read_records(tmp_path / "p.jsonl") == [record, record]
    (tmp_path / "p.jsonl").write_text((tmp_path / "p.jsonl").read_text().replace("log_likelihood", "loglikelihood"))
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1: no key 'log_likelihood'"):
        read_records(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("selected", "false", "bool"),
        ("selected", 0, "bool"),
        ("selected", None, "bool"),
        ("behavior_id", None, "str"),
        ("prompt", 3, "str"),
        ("tokens", "5", "int"),
        ("tokens", True, "int"),
        ("settings", [], "dict"),
        ("compliance", "1.0", r"float \| None"),
        ("log_likelihood", True, r"float \| None"),
    ],
)
def test_a_value_of_a_prompt_record_that_is_of_another_type(tmp_path, key, value, allowed):
    record = dataclasses.asdict(PromptRecord("a", "p", "r", 1, "s", {}, -3.5, 5, 1, True))
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record | {key: value}) + "\n")
    with pytest.raises(ValueError, match=rf"p\.jsonl, line 2: {key} is {re.escape(repr(value))}; allowed: {allowed}$"):
        read_records(tmp_path / "p.jsonl")
