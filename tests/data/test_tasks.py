"""Multiple-choice files, prompts and tokens: lm-eval's own templates by hand, each fault named by file, line and key."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dat_jax.data import tasks
from dat_jax.data.tasks import Question

ARC = {"id": "M1", "question": "What sinks?", "choices": {"text": ["cork", "a stone"], "label": ["1", "2"]}, "answerKey": "2"}
MMLU = {"question": " Two and two? ", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1}


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_are_those_of_the_harness(tmp_path):
    """The strings of lm-eval 0.4.13: tasks/arc/arc_easy.yaml, and tasks/mmlu/default with its description per subject."""
    (arc,) = tasks.read(lines(tmp_path / "arc.jsonl", ARC))
    assert (
        tasks.context(arc) == "Question: What sinks?\nAnswer:" and arc.scored == ("cork", "a stone") and arc.answer == 1 and arc.id == "M1"
    )
    (mmlu,) = tasks.read(lines(tmp_path / "mmlu.jsonl", MMLU))
    about = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    assert tasks.context(mmlu) == about + "Two and two?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:" and mmlu.scored == tuple("ABCD")
    shot = "Two and two?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
    assert tasks.context(Question("x", "Q", ("a", "b"), 0, "abstract_algebra", True), [mmlu]) == about + shot + "Q\nA. a\nB. b\nAnswer:"
    assert tasks.context(arc, [arc]) == "Question: What sinks?\nAnswer: a stone\n\nQuestion: What sinks?\nAnswer:"
    assert tasks.context(Question("x", "Q", ("a", "b"), 0, "", True)) == "Q\nA. a\nB. b\nAnswer:"


def test_the_formats_hold_the_same_questions(tmp_path):
    (tmp_path / "abstract_algebra_test.csv").write_text('" Two and two? ",3,4,5,6,B\n"Again?",1,2,3,"a, b",D\n')
    first, second = tasks.read(str(tmp_path / "abstract_algebra_test.csv"))
    (row,) = tasks.read(lines(tmp_path / "mmlu.jsonl", MMLU))
    assert first == row and second.choices[3] == "a, b" and second.answer == 3 and second.id == "1"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ARC]), tmp_path / "arc.parquet")
    assert tasks.read(str(tmp_path / "arc.parquet")) == tasks.read(lines(tmp_path / "arc.jsonl", ARC))
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("virology_test.csv", "anatomy_test.csv"):
        (folder / name).write_text("Question,A,B,C,D,Answer\nQ?,a,b,c,d,C\n")
    found = tasks.read(str(folder))
    assert [(q.id, q.subject, q.answer) for q in found] == [("anatomy_test/0", "anatomy", 2), ("virology_test/0", "virology", 2)]
    assert [q.subject for q in tasks.spread([*found, *found, *found], 2)] == ["anatomy", "virology"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MMLU | {"answer": 4}, r"answer is 4; allowed: 0 to 3, or a letter from A to D"),
        (MMLU | {"answer": "E"}, r"answer is 'E'; allowed: 0 to 3, or a letter from A to D"),
        (MMLU | {"choices": ["a"]}, r"choices is \['a'\]; allowed: a list of 2 to 26 texts"),
        (MMLU | {"choices": ["a", ""]}, r"choices is ''; allowed: a non-empty text"),
        (ARC | {"answerKey": "C"}, r"answerKey is 'C'; allowed: 1, 2"),
        ({"question": "Q", "choices": ["a", "b"]}, r"no key 'answer'; found: question, choices"),
        ({"question": "Q", "options": ["a", "b"], "answer": 0}, r"no key 'choices'; found: question, options, answer"),
    ],
)
def test_a_fault_names_file_line_and_key(row, message, tmp_path):
    with pytest.raises(ValueError, match=rf"q\.jsonl, line 2: {message}"):
        tasks.read(lines(tmp_path / "q.jsonl", MMLU, row))


def test_further_faults(tmp_path):
    (tmp_path / "x.csv").write_text("Q?,a,b,C\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 1: 4 fields; allowed: MMLU's 6"):
        tasks.read(str(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match=r"the id 'M1' stands there more than once"):
        tasks.read(lines(tmp_path / "arc.jsonl", ARC, ARC))
    with pytest.raises(ValueError, match="two tasks are called 'a'"):
        tasks.named(["a=x.csv", "b/a.jsonl"])
    assert tasks.named(["data/arc.jsonl", "mmlu=data/test"]) == {"arc": "data/arc.jsonl", "mmlu": "data/test"}
    one = Question("7", "Q", ("a", "b"), 0, "s", True)
    with pytest.raises(ValueError, match=r"0 examples have the subject 's' of question '7'; allowed: 1 or more"):
        tasks.examples_of(one, [one], 1)  # the question itself is no example


def test_the_answer_by_sum_by_characters_and_by_bytes():
    """By hand: sums -4, -6, -9; per character -4, -3, -2.25 of "a", "bb", "cccc"; an é has two bytes."""
    question = Question("", "", ("a", "bb", "cccc"), 2)
    assert tasks.correct(question, [-4.0, -6.0, -9.0]) == {"acc": False, "acc_norm": True, "acc_bytes": True}
    assert tasks.correct(dataclass_of("é", "ab", 0), [-3.0, -4.0]) == {"acc": True, "acc_norm": False, "acc_bytes": True}
    assert tasks.correct(dataclass_of("a", "b", 0), [-1.0, -1.0])["acc"]  # a tie goes to the first


def dataclass_of(first, second, answer):
    return Question("", "", (first, second), answer)
