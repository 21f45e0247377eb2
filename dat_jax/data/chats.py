"""Chats: benign conversations for utility, from JSON lines, parquet, or an ArrayRecord dataset made by `dat_jax.data.prepare`."""

import json
import tempfile
from collections.abc import Sequence
from typing import Any

from etils import epath

from dat_jax.data import files

ROLES = ("system", "user", "assistant")


def load_chats(path: str) -> list[list[dict[str, str]]]:
    """Returns conversations as lists of {"role", "content"}, each cut after its last assistant message.

    A row has `messages` (UltraChat and the like) or `prompt` and `response`. ValueError names file, row and key.
    """
    folder = epath.Path(path)
    if folder.is_dir():
        rows = _read_dataset(path)
    elif path.endswith(".parquet"):
        rows = files.read_parquet(path)
    else:
        rows = list(files.read_jsonl(path))
    if not rows:
        raise ValueError(f"{path}: no conversations")
    return [messages(path, number, row) for number, row in rows]


def messages(path: str, number: int, row: dict[str, Any]) -> list[dict[str, str]]:
    """Checks one row and returns its conversation."""
    if "messages" not in row and "prompt" in row and "response" in row:
        row = {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
    files.require_keys(path, number, list(row), ["messages"], "key")
    if not isinstance(row["messages"], list):
        raise ValueError(f"{path}, line {number}: messages is a {type(row['messages']).__name__}; allowed: a list of objects")
    chat = []
    for message in row["messages"]:
        if not isinstance(message, dict):
            raise ValueError(f"{path}, line {number}: a message is a {type(message).__name__}; allowed: an object with role and content")
        files.require_keys(path, number, list(message), ["role", "content"], "key")
        if message["role"] not in ROLES:
            raise ValueError(f"{path}, line {number}: role {message['role']!r}; allowed: {', '.join(ROLES)}")
        chat.append({"role": message["role"], "content": files.require_text(path, number, "content", message["content"])})
    last = max((i for i, m in enumerate(chat) if m["role"] == "assistant"), default=0)
    if last == 0:
        raise ValueError(f"{path}, line {number}: no assistant message after a user's; allowed: at least one")
    _check_order(path, number, [message["role"] for message in chat[: last + 1]])
    return chat[: last + 1]


def _check_order(path: str, number: int, roles: Sequence[str]) -> None:
    """Raises ValueError for an order of roles that no chat template means: many write it out all the same, as something else."""
    turns = roles[1:] if roles[0] == "system" else roles
    for turn, role in enumerate(turns):
        if role != ("user", "assistant")[turn % 2]:
            raise ValueError(
                f"{path}, line {number}: the roles are {', '.join(roles)}; allowed: system first or not at all, then user and assistant "
                "in turn"
            )


def first_exchanges(chats: Sequence[Sequence[dict[str, str]]]) -> list[tuple[str, str]]:
    """Returns the different (user's words, assistant's answer) of the chats' first exchanges, in their order."""
    found = []
    for chat in chats:
        turns = [message for message in chat if message["role"] != "system"]
        if turns[0]["role"] == "user" and turns[1]["role"] == "assistant":
            found.append((turns[0]["content"].strip(), turns[1]["content"].strip()))
    return list(dict.fromkeys(found))


def _read_dataset(path: str) -> list[tuple[int, dict[str, Any]]]:
    import tensorflow_datasets as tfds  # here: it takes seconds to import

    if files.is_remote(path):  # ArrayRecord maps files of the disk
        with tempfile.TemporaryDirectory() as local:
            for file in epath.Path(path).iterdir():
                file.copy(epath.Path(local) / file.name)
            return _read_dataset(local)
    try:
        builder = tfds.builder_from_directory(path)
        split = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
        source = builder.as_data_source(split=split)
    except Exception as error:  # of many kinds, of tfds, of protobuf and of ArrayRecord
        made = "`python -m dat_jax.data.prepare` makes one"
        raise ValueError(f"{path}: no dataset of chats can be read there: {files.one_line(error)}; {made}") from error
    if "messages" not in builder.info.features:
        raise ValueError(
            f"{path}: no feature 'messages'; found: {', '.join(builder.info.features)}; `python -m dat_jax.data.prepare` makes one"
        )
    try:
        return [(i, {"messages": json.loads(row["messages"].decode())}) for i, row in enumerate(source)]
    except Exception as error:  # a damaged record: ArrayRecord's own errors, or those of what it gives all the same
        raise ValueError(f"{path}: a damaged dataset: {files.one_line(error)}; `python -m dat_jax.data.prepare` makes it anew") from error
