"""Multiple-choice tasks: MMLU's and ARC's files, their prompts, and the tokens of context and choice, all in lm-eval's convention.

    MMLU   {"question", "choices": [..], "answer": 0 or "A", optional "subject"} as JSON lines or parquet; or its CSV without a header:
           question, four choices and a letter, the subject in the file's name
    ARC    {"question", "choices": {"text": [..], "label": [..]}, "answerKey"} as JSON lines or parquet

A choice is scored by the log-likelihood of its tokens behind the context. Source: lm-eval 0.4.13, tasks/mmlu/default and tasks/arc.
"""

import csv
import dataclasses
import io
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from dat_jax.data import files

SUFFIXES = (".csv", ".jsonl", ".parquet")
SPLITS = ("_test", "_val", "_dev", "-test", "-validation", "-dev")  # what an MMLU file's name ends with behind the subject


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a task; `lettered`: the choices stand in the prompt, and their letters are scored (MMLU)."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    lettered: bool = False

    @property
    def scored(self) -> tuple[str, ...]:
        """The choices as they are scored, without the space before them."""
        return tuple(string.ascii_uppercase[: len(self.choices)]) if self.lettered else self.choices


def prompt(question: Question) -> str:
    """Returns a question up to where its answer stands."""
    if not question.lettered:
        return f"Question: {question.text}\nAnswer:"
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(question.scored, question.choices))
    return f"{question.text.strip()}{choices}\nAnswer:"


def context(question: Question, examples: Sequence[Question] = ()) -> str:
    """Returns what stands before the choice: the description of the subject, examples with their answers, the question."""
    about = question.subject.replace("_", " ")
    described = f"The following are multiple choice questions (with answers) about {about}.\n\n" if question.lettered and about else ""
    return described + "".join(f"{prompt(e)} {e.scored[e.answer]}\n\n" for e in examples) + prompt(question)


def correct(question: Question, log_likelihoods: Sequence[float]) -> dict[str, bool]:
    """Whether the likeliest choice is the answer: by its log-likelihood (acc), per character (acc_norm) and per byte (acc_bytes).

    Ties go to the first choice. lm-eval 0.4.13 divides by characters in acc_norm, and by bytes in acc_bytes.
    """
    found = np.asarray(log_likelihoods, float)
    lengths = {"acc": [1] * len(found)}
    lengths |= {"acc_norm": [len(c) for c in question.scored], "acc_bytes": [len(c.encode()) for c in question.scored]}
    return {name: bool(np.argmax(found / np.array(length, float)) == question.answer) for name, length in lengths.items()}


def encode(tokenizer: Any, before: str, choice: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a context, which is not empty, and of the choice behind it.

    Spaces at the context's end belong to the choice; both are encoded together, and the choice is what comes after as many tokens as the
    context alone has. The tokenizer adds its own special tokens unless the text begins with BOS. Raises ValueError where no token is left.
    """
    stripped = before.rstrip()
    before, choice = stripped, before[len(stripped) :] + choice
    ids, whole = (_encoded(tokenizer, text) for text in (before, before + choice))
    if len(whole) <= len(ids) or not ids:
        raise ValueError(f"the choice {choice!r:.80} has no token of its own behind its question; allowed: texts that add one")
    return ids, whole[len(ids) :]


def _encoded(tokenizer: Any, text: str) -> list[int]:
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begins = first is not None and text.startswith(tokenizer.decode(first))
    return tokenizer.encode(text, add_special_tokens=False) if begins else tokenizer.encode(text)


def named(entries: Sequence[str]) -> dict[str, str]:
    """Returns name -> path of entries NAME=PATH; a path alone is named by its file or folder. ValueError for a name that comes twice."""
    found: dict[str, str] = {}
    for entry in entries:
        name, _, path = entry.rpartition("=")
        name = name or epath.Path(path).name.partition(".")[0]
        if name in found:
            raise ValueError(f"two tasks are called {name!r}; allowed: different names, NAME=FILE gives one its own")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"a task is called {name!r}; allowed: letters, digits, - and _, in NAME=FILE")
        found[name] = path
    return found


def read(path: str) -> list[Question]:
    """Reads a file of questions, or all files of a folder; ValueError names file, line and key of the first fault."""
    folder = epath.Path(path)
    parts = [folder]
    if folder.is_dir():
        parts = sorted(part for part in folder.iterdir() if part.suffix in SUFFIXES)
        if not parts:
            raise ValueError(f"{path}: no file of questions there; allowed: {', '.join(SUFFIXES)}")
    questions = [question for part in parts for question in _read_file(str(part), len(parts) > 1)]
    if twice := files.repeated(question.id for question in questions):
        raise ValueError(f"{path}: the id {twice!r} stands there more than once; allowed: each once")
    return questions


def spread(questions: Sequence[Question], limit: int) -> list[Question]:
    """Returns at most `limit` questions, evenly spaced, so that a file sorted by subject keeps all of them; 0: all."""
    if not limit or limit >= len(questions):
        return list(questions)
    return [questions[i] for i in np.linspace(0, len(questions) - 1, limit).round().astype(int)]


def examples_of(question: Question, examples: Sequence[Question], count: int) -> list[Question]:
    """Returns the first `count` examples of a question's subject, never the question itself (lm-eval's sampler `first_n`).

    Raises ValueError where there are fewer.
    """
    found = [e for e in examples if e.subject == question.subject and (e.text, e.choices) != (question.text, question.choices)]
    if len(found) < count:
        raise ValueError(
            f"{len(found)} examples have the subject {question.subject!r} of question {question.id!r}; allowed: {count} or more"
        )
    return found[:count]


def _read_file(path: str, several: bool) -> list[Question]:
    stem = epath.Path(path).name.rpartition(".")[0]
    begin = f"{stem}/" if several else ""
    if path.endswith(".csv"):
        subject = next((stem.removesuffix(split) for split in SPLITS if stem.endswith(split)), stem)
        return [_of_csv(path, line, row, f"{begin}{number}", subject) for number, (line, row) in enumerate(_rows(path))]
    rows = files.read_parquet(path) if path.endswith(".parquet") else list(files.read_jsonl(path))
    return [_of_object(path, line, row, f"{begin}{number}") for number, (line, row) in enumerate(rows)]


def _rows(path: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(files.read_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows[1:] if rows[0][1][-1].strip().lower() == "answer" else rows  # MMLU has no header; copies of it have


def _of_csv(path: str, line: int, row: list[str], id: str, subject: str) -> Question:
    if len(row) != 6:
        raise ValueError(f"{path}, line {line}: {len(row)} fields; allowed: MMLU's 6, a question, four choices and a letter from A to D")
    return _question(path, line, id, row[0], row[1:5], row[5], "answer", subject, True)


def _of_object(path: str, line: int, row: dict[str, Any], id: str) -> Question:
    files.require_keys(path, line, list(row), ["question", "choices"], "key")
    choices = row["choices"]
    if isinstance(choices, dict):
        files.require_keys(path, line, list(choices), ["text", "label"], "key")
        files.require_keys(path, line, list(row), ["answerKey"], "key")
        labels, key = list(choices["label"]), row["answerKey"]
        if key not in labels:
            raise ValueError(f"{path}, line {line}: answerKey is {key!r}; allowed: {', '.join(map(str, labels))}")
        return _question(path, line, str(row.get("id", id)), row["question"], choices["text"], labels.index(key), "answerKey", "", False)
    files.require_keys(path, line, list(row), ["answer"], "key")
    subject = row.get("subject") or ""
    if not isinstance(subject, str):
        raise ValueError(f"{path}, line {line}: subject is {subject!r}; allowed: a text")
    return _question(path, line, id, row["question"], choices, row["answer"], "answer", subject, True)


def _question(
    path: str, line: int, id: str, text: Any, choices: Any, answer: Any, key: str, subject: str, lettered: bool
) -> Question:  # fmt: skip
    """A question whose fields were checked; `answer`: the number of the choice, or its letter."""
    text = files.require_text(path, line, "question", text)
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
        raise ValueError(f"{path}, line {line}: choices is {choices!r:.80}; allowed: a list of 2 to 26 texts")
    kept = tuple(files.require_text(path, line, "choices", choice) for choice in choices)
    letters = string.ascii_uppercase[: len(kept)]
    number = letters.find(answer.strip()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(kept):
        raise ValueError(f"{path}, line {line}: {key} is {answer!r}; allowed: 0 to {len(kept) - 1}, or a letter from A to {letters[-1]}")
    return Question(id, text, kept, number, subject, lettered)
