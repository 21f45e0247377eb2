"""The target's own answers as utility chats: what is asked, what is kept, and that an interrupted call goes on."""

import json

import pytest

from dat_jax.attacks.victim import Decoding
from dat_jax.data.chats import load_chats
from dat_jax.models.huggingface import Model
from dat_jax.stations import own_answers

SETTINGS = Decoding(
    prompt_length=16, response_length=1, max_new_tokens=4, batch_size=2, temperature=0.0, perturb="user", system=None
)  # fmt: skip
ANSWERS = {"a": "An apple.", "b": "I'm sorry, but no.", "c": "", "d": "A date.", "e": "An egg."}


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reached the model, in batches; the model answers from a table."""
    batches = []

    def answer(victim, attempts):
        assert victim.decoding == SETTINGS
        batches.append([attempt.prompt for attempt in attempts])
        return [ANSWERS[attempt.prompt] for attempt in attempts]

    monkeypatch.setattr(own_answers.Victim, "answer", answer)
    return batches


def silent(_):
    """Says nothing."""


def test_prompts_of_every_kind_of_file(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\none\n")
    (tmp_path / "p.csv").write_text('text,n\none,1\n"two",2\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert own_answers.read_plain_prompts(str(tmp_path / "p.txt")) == ["one", "two"]
    assert own_answers.read_plain_prompts(str(tmp_path / "p.csv"), "text") == ["one", "two"]
    assert own_answers.read_plain_prompts(str(tmp_path / "p.jsonl")) == ["one", "two"]
    with pytest.raises(ValueError, match=r"p\.csv, line 1: no column 'test'; found: text, n; did you mean to rename 'text'"):
        own_answers.read_plain_prompts(str(tmp_path / "p.csv"), "test")


def test_refusals_and_empty_answers_are_left_out(tmp_path, asked):
    output = str(tmp_path / "chats.jsonl")
    counts = own_answers.write_answers(Model({}, None, None, "m"), list("abcde"), SETTINGS, output, report=silent)
    assert counts == {"comply": 3, "refuse": 1, "lost": 1}
    assert [chat[1]["content"] for chat in load_chats(output)] == ["An apple.", "A date.", "An egg."]
    assert asked == [["a", "b"], ["c", "d"], ["e"]]
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]


def test_an_interrupted_call_goes_on(tmp_path, asked, monkeypatch):
    output, model = str(tmp_path / "chats.jsonl"), Model({}, None, None, "m")
    whole = own_answers.Victim.answer

    def dies(victim, attempts):
        if attempts[0].prompt == "e":
            raise KeyboardInterrupt
        return whole(victim, attempts)

    monkeypatch.setattr(own_answers.Victim, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        own_answers.write_answers(model, list("abcde"), SETTINGS, output, report=silent)
    monkeypatch.setattr(own_answers.Victim, "answer", whole)
    with pytest.raises(ValueError, match=r"unfinished, line 3: the answer to 'b', not to 'x'"):
        own_answers.write_answers(model, list("axcde"), SETTINGS, output, report=silent)
    with pytest.raises(ValueError, match=r"unfinished was made with model = 'm', now it is 'other'; delete it to start anew"):
        own_answers.write_answers(Model({}, None, None, "other"), list("abcde"), SETTINGS, output, report=silent)
    asked.clear()
    assert own_answers.write_answers(model, list("abcde"), SETTINGS, output, report=silent)["comply"] == 3
    assert asked == [["e"]]
    assert json.loads((tmp_path / "chats.jsonl").read_text().splitlines()[0])["messages"][0] == {"role": "user", "content": "a"}


def test_a_model_that_refuses_everything(tmp_path, asked):
    with pytest.raises(ValueError, match="refused all 1 prompts"):
        own_answers.write_answers(Model({}, None, None, "m"), ["b"], SETTINGS, str(tmp_path / "c.jsonl"), report=silent)
