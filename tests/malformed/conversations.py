"""Chats and the prompts that must be answered."""

import pathlib

from dat_jax.data.chats import load_chats
from dat_jax.data.utility import read_utility_prompts
from malformed import Row, file

CHATS, PROMPTS, LENGTHS = "Chats", "Benign and borderline prompts", "Texts as tokens"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def of_chats(content, message, what=""):
    return file(CHATS, load_chats, "c.jsonl", content, message, what)


def of_parquet(content, message, what=""):
    return file(CHATS, load_chats, "c.parquet", content, message, what)


def of_prompts(content, message, what=""):
    return file(PROMPTS, read_utility_prompts, "p.jsonl", content, message, what)


def of_csv(content, message, what=""):
    return file(PROMPTS, read_utility_prompts, "p.csv", content, message, what)


def table(folder: pathlib.Path, **columns: list) -> bytes:
    """A parquet file's bytes."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


def parquet(what, message, damage=lambda data: data, **columns):
    """A parquet file of these columns, damaged."""

    def run(folder: pathlib.Path) -> None:
        (folder / "c.parquet").write_bytes(damage(table(folder, **columns)))
        load_chats(str(folder / "c.parquet"))

    return Row(CHATS, f"c.parquet: {what}", run, message)


def dataset(what, message, name, text):
    """A folder that is no dataset."""

    def run(folder: pathlib.Path) -> None:
        (folder / "data").mkdir()
        (folder / "data" / name).write_text(text)
        load_chats(str(folder / "data"))

    return Row(CHATS, what, run, message)


TEXTS = {"prompt": ["q" * 50 + str(i) for i in range(200)], "response": ["a" * 50 + str(i) for i in range(200)]}

ROWS = [
    of_chats(None, 'FOLDER/c.jsonl: no such file'),
    of_chats("", 'FOLDER/c.jsonl: the file is empty'),
    of_chats("not json\n", 'FOLDER/c.jsonl, line 1: not JSON: Expecting value'),
    of_chats({"messages": [USER, ANSWER]}.__repr__(), 'FOLDER/c.jsonl, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_chats({"text": "q"}, "FOLDER/c.jsonl, line 1: no key 'messages'; found: text"),
    of_chats({"prompt": "q"}, "FOLDER/c.jsonl, line 1: no key 'messages'; found: prompt"),
    of_chats({"prompt": "", "response": "a"}, "FOLDER/c.jsonl, line 1: content is ''; allowed: a non-empty text"),
    of_chats({"prompt": "q", "response": None}, 'FOLDER/c.jsonl, line 1: content is None; allowed: a non-empty text'),
    of_chats({"prompt": 3, "response": "a"}, 'FOLDER/c.jsonl, line 1: content is 3; allowed: a non-empty text'),
    of_chats({"messages": "hello"}, 'FOLDER/c.jsonl, line 1: messages is a str; allowed: a list of objects'),
    of_chats({"messages": []}, "FOLDER/c.jsonl, line 1: no assistant message after a user's; allowed: at least one"),
    of_chats({"messages": ["hello"]}, 'FOLDER/c.jsonl, line 1: a message is a str; allowed: an object with role and content'),
    of_chats({"messages": [{"role": "user", "text": "q"}, ANSWER]}, "FOLDER/c.jsonl, line 1: no key 'content'; found: role, text"),
    of_chats({"messages": [{"role": "human", "content": "q"}, ANSWER]}, "FOLDER/c.jsonl, line 1: role 'human'; allowed: system, user, assistant"),
    of_chats({"messages": [{"role": ["user"], "content": "q"}, ANSWER]}, "FOLDER/c.jsonl, line 1: role ['user']; allowed: system, user, assistant"),
    of_chats({"messages": [{"role": "user", "content": ["q"]}, ANSWER]}, "FOLDER/c.jsonl, line 1: content is ['q']; allowed: a non-empty text"),
    of_chats({"messages": [USER]}, "FOLDER/c.jsonl, line 1: no assistant message after a user's; allowed: at least one"),
    of_chats({"messages": [ANSWER, USER]}, "FOLDER/c.jsonl, line 1: no assistant message after a user's; allowed: at least one"),
    of_chats({"messages": [ANSWER, USER, ANSWER]}, 'FOLDER/c.jsonl, line 1: the roles are assistant, user, assistant; allowed: system first or not at all, then user and assistant in turn'),
    of_chats({"messages": [USER, USER, ANSWER]}, 'FOLDER/c.jsonl, line 1: the roles are user, user, assistant; allowed: system first or not at all, then user and assistant in turn'),
    of_chats({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, 'FOLDER/c.jsonl, line 1: the roles are user, system, assistant; allowed: system first or not at all, then user and assistant in turn'),
    of_chats({"messages": [USER, {"role": "assistant", "content": " "}]}, "FOLDER/c.jsonl, line 1: content is ' '; allowed: a non-empty text"),
    of_chats({"prompt": "q\0", "response": "a"}, "FOLDER/c.jsonl, line 1: content holds '\\x00'; allowed: a text without it"),
    of_chats({"prompt": "q", "response": "\udc00"}, "FOLDER/c.jsonl, line 1: content holds '\\udc00'; allowed: a text without it"),
    of_chats('{"prompt": "q", "prompt": "r", "response": "a"}', "FOLDER/c.jsonl, line 1: the key 'prompt' stands in one object more than once"),
    of_chats('{"prompt": "q", "response": "a"}\n{"prompt": "q"\n', "FOLDER/c.jsonl, line 2: not JSON: Expecting ',' delimiter"),
    of_chats(b'{"prompt": "q", "response": "a"}\n{"prompt": "\xfc", "response": "a"}\n', 'FOLDER/c.jsonl, line 2: byte 0xfc is not UTF-8; allowed: UTF-8 text'),
    of_parquet(None, 'FOLDER/c.parquet: no such file'),
    of_parquet("", "FOLDER/c.parquet: not a parquet file, or a damaged one: ..."),
    of_parquet('{"prompt": "q", "response": "a"}', "FOLDER/c.parquet: not a parquet file, or a damaged one: ..."),
    parquet("the columns text, answer", "FOLDER/c.parquet, line 1: no key 'messages'; found: text, answer", text=["q"], answer=["a"]),
    parquet("a prompt that is null", 'FOLDER/c.parquet, line 1: content is None; allowed: a non-empty text', prompt=[None], response=["a"]),
    parquet("messages that are numbers", 'FOLDER/c.parquet, line 1: messages is a int; allowed: a list of objects', messages=[1]),
    parquet("no row", 'FOLDER/c.parquet: no conversations', prompt=[], response=[]),
    parquet("cut in the middle", "FOLDER/c.parquet: not a parquet file, or a damaged one: ...", lambda data: data[: len(data) // 2], **TEXTS),
    parquet("the first 60 bytes of a page overwritten", 'FOLDER/c.parquet: not a parquet file, or a damaged one: ...', lambda data: data[:40] + b"\xff" * 60 + data[100:], **TEXTS),
    dataset("a folder with a text in it", 'FOLDER/data: no dataset of chats can be read there: ...; `python -m dat_jax.data.prepare` makes one', "notes.txt", "hello"),
    dataset("a folder whose dataset_info.json is {", 'FOLDER/data: no dataset of chats can be read there: ...; `python -m dat_jax.data.prepare` makes one', "dataset_info.json", "{"),
    of_prompts(None, 'FOLDER/p.jsonl: no such file'),
    of_prompts("", 'FOLDER/p.jsonl: the file is empty'),
    of_prompts({"id": 1}, "FOLDER/p.jsonl, line 1: no key 'prompt'; found: id"),
    of_prompts({"prompt": "p"}, "FOLDER/p.jsonl, line 1: no key 'id'; found: prompt"),
    of_prompts({"id": None, "prompt": "p"}, 'FOLDER/p.jsonl, line 1: id is None; allowed: a text or an integer'),
    of_prompts({"id": True, "prompt": "p"}, 'FOLDER/p.jsonl, line 1: id is True; allowed: a text or an integer'),
    of_prompts({"id": 1.5, "prompt": "p"}, 'FOLDER/p.jsonl, line 1: id is 1.5; allowed: a text or an integer'),
    of_prompts({"id": " ", "prompt": "p"}, "FOLDER/p.jsonl, line 1: id is ' '; allowed: a text or an integer"),
    of_prompts({"id": [1], "prompt": "p"}, 'FOLDER/p.jsonl, line 1: id is [1]; allowed: a text or an integer'),
    of_prompts({"id": 1, "prompt": ""}, "FOLDER/p.jsonl, line 1: prompt is ''; allowed: a non-empty text"),
    of_prompts({"id": 1, "prompt": ["p"]}, "FOLDER/p.jsonl, line 1: prompt is ['p']; allowed: a non-empty text"),
    of_prompts({"id": 1, "prompt": "p", "response": ["r"]}, "FOLDER/p.jsonl, line 1: response is ['r']; allowed: a text"),
    of_prompts({"id": 1, "prompt": "p", "form": 3}, 'FOLDER/p.jsonl, line 1: form is 3; allowed: a text'),
    of_prompts('{"id": 1, "prompt": "p"}\n{"id": "1", "prompt": "q"}\n', "FOLDER/p.jsonl, line 2: the id '1' stands there more than once (safe), first on line 1; allowed: each once"),
    of_prompts('{"id": 1, "prompt": "p"}\n{"id": 2, "prompt": "p"}\n', "FOLDER/p.jsonl, line 2: the prompt 'p' stands there more than once (safe), first on line 1; allowed: each once"),
    of_csv("id,prompt,type\n1,p,x\n", "FOLDER/p.csv, line 1: no column 'label'; found: id, prompt, type"),
    of_csv("id,prompt,label,type\n1,p,harmless,x\n", "FOLDER/p.csv, line 2: label is 'harmless'; allowed: safe | unsafe"),
    of_csv("id,prompt,label,type\n1,,safe,x\n", "FOLDER/p.csv, line 2: prompt is ''; allowed: a non-empty text"),
    of_csv("id,prompt,label,type\n1,p,safe,x\n1,q,safe,x\n", "FOLDER/p.csv, line 3: the id '1' stands there more than once (safe), first on line 2; allowed: each once"),
    of_csv("id,prompt,label,type\n1,p,safe\n", "FOLDER/p.csv, line 2: 3 fields; allowed: the header's 4"),
]
