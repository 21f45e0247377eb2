"""Text that users bring, encoded as text: a control token that is spelled in it stays the letters it is made of.

`</s>` or `<|im_end|>` inside a request would end the user's turn if a tokenizer read it as it reads its own template. So a rendered
conversation comes with the spans of its messages. Where one of them spells a control token, a copy of the tokenizer encodes the
conversation. Its control tokens have names that no text knows, and the template's own are renamed to them. All other texts take the
tokenizer as it is. Code that means control tokens gives ids (`Attempt.tokens`).
"""

import dataclasses
import functools
import json
import re
import secrets
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from dat_jax.data.chat_templates import render

Span = tuple[int, int]  # of characters


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Ids, and the characters of the given text that each stands for."""

    ids: list[int]
    offsets: list[Span]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a text that a user brought: no control token among them, whatever it spells."""
    return encode(tokenizer, text, [(0, len(text))]).ids


def encode(tokenizer: Any, text: str, spans: Sequence[Span] = ()) -> Encoded:
    """Returns the ids of a text without BOS and EOS; inside the spans, which are in order, control tokens are letters.

    Raises ValueError when a span spells a control token and the tokenizer has no tokenizer.json, by which alone it can be kept apart.
    """
    control = _control(tokenizer)
    spelled = any(control.spelled_in(text, span) for span in spans)
    if spelled and tokenizer.is_fast:
        return control.renamed.encode(text, spans)
    if spelled:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no tokenizer.json; a text with control tokens in it needs one")
    if not tokenizer.is_fast:
        return Encoded(list(tokenizer.encode(text, add_special_tokens=False)), [])
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Encoded(list(found["input_ids"]), list(found["offset_mapping"]))


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Returns name and id of the tokens that a text must not reach: the special ones, and those between the turns of the chat template."""
    return _control(tokenizer).names


class _Control:
    """The control tokens of a tokenizer, how they are found in a text, and the copy that does not read them there."""

    def __init__(self, tokenizer: Any):
        added, around = dict(tokenizer.added_tokens_decoder), around_turns(tokenizer)
        self.names = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}
        self.names |= {t.content: i for i, t in added.items() if t.special or (t.content.strip() and t.content in around)}
        self._pattern = _any_of(self.names)
        self._longest = max(map(len, self.names), default=0)
        self._stored = tokenizer.backend_tokenizer if tokenizer.is_fast else None

    def spelled_in(self, text: str, span: Span) -> bool:
        """Whether a control token is spelled in the span, or across its border."""
        found = self._pattern.finditer(text, max(0, span[0] - self._longest), span[1] + self._longest)
        return any(match.end() > span[0] and match.start() < span[1] for match in found)

    @functools.cached_property
    def renamed(self) -> "_Renamed":
        """The copy, made when the first text needs it: a large vocabulary takes a second."""
        return _Renamed(self._stored, self.names, self._pattern)


_CONTROL: weakref.WeakKeyDictionary[Any, _Control] = weakref.WeakKeyDictionary()


def _control(tokenizer: Any) -> _Control:
    if tokenizer not in _CONTROL:
        _CONTROL[tokenizer] = _Control(tokenizer)
    return _CONTROL[tokenizer]


def around_turns(tokenizer: Any) -> str:
    """What the chat template writes between turns. Some models do not mark these tokens as special; "" where it takes no plain chat."""
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": role, "content": "0"} for role in ("user", "assistant", "user")]
    try:
        return render(tokenizer, turns, generation_prompt=False)
    except ValueError:  # it takes other chats alone, or none: conversations.py says what is wrong with it
        return ""


class _Renamed:
    """A copy of a tokenizer whose control tokens are spelled in a way that no text knows."""

    def __init__(self, original: Any, names: dict[str, int], pattern: re.Pattern[str]):
        nonce = secrets.token_hex(8)
        self._names = {name: f"\u2983{nonce}{number}\u2984" for number, name in enumerate(sorted(names))}
        self._pattern = pattern
        self._tokenizer = Tokenizer.from_str(json.dumps(_rename(json.loads(original.to_str()), self._names)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = {self._tokenizer.token_to_id(self._names[name]): index for name, index in names.items()}
        self._ids = {found: index for found, index in ids.items() if found is not None}

    def encode(self, text: str, spans: Sequence[Span]) -> Encoded:
        """Encodes a text whose control tokens count outside of the spans alone."""
        pieces: list[str] = []
        origins: list[Span] = []  # for every character of the renamed text the place in the given one
        cursor = 0
        for start, stop in [*spans, (len(text), len(text))]:
            for part in self._pattern.split(text[cursor:start]):  # the pattern is one group, so the names are kept
                if part in self._names:
                    pieces.append(self._names[part])
                    origins += [(cursor, cursor + len(part))] * len(self._names[part])
                else:
                    pieces.append(part)
                    origins += [(i, i + 1) for i in range(cursor, cursor + len(part))]
                cursor += len(part)
            pieces.append(text[start:stop])
            origins += [(i, i + 1) for i in range(start, stop)]
            cursor = stop
        found = self._tokenizer.encode("".join(pieces), add_special_tokens=False)
        offsets = [(origins[a][0], origins[b - 1][1]) if b > a else (0, 0) for a, b in found.offsets]
        return Encoded([self._ids.get(index, index) for index in found.ids], offsets)


def _rename(stored: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Renames tokens in a tokenizer.json: as added tokens, in the vocabulary, as unknown token; no merge of letters gives them."""
    stored["post_processor"] = None  # adds BOS and EOS, which nobody asks for here
    for token in stored["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = stored["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): index for token, index in model["vocab"].items()}
    else:  # Unigram: a list of token and score
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
    return stored


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern of one group that finds any of the names, the longest first; without names it finds nothing."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)") + ")")
