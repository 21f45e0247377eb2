"""What the model gave, as the API says it: texts, log-probabilities, usage and why each answer ended."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from dat_jax.data import plain_text
from dat_jax.serving.programs import Given, Prompt, Scores
from dat_jax.serving.requests import Ask

CONTEXT = 8  # tokens before an answer that its first letters may depend on: a blank in front, the parts of one letter


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to a prompt."""

    ids: tuple[int, ...]  # new ones, the one that ended it included
    text: str
    reason: str  # "stop" or "length"


class Pieces:
    """The text that a token stands for within a text, and its bytes; for a tokenizer that is asked by one thread at a time."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._anchor = plain_text.encode_text(tokenizer, "a")[-1:]  # tokens that begin a text may lose their blank
        self._before = self._decode([])
        self.of = functools.cache(self._of)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._anchor + ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _of(self, token: int) -> str:
        found = self._decode([token])
        return found.removeprefix(self._before)


def rows(ask: Ask) -> list[Prompt]:
    """The rows that a request wants answered: n of its first prompt, then n of the next; [] where a scoring alone gives the answer."""
    if by_scoring(ask):
        return []
    return [Prompt(ids, ask.max_tokens, ask.temperature, ask.top_p, ask.row_seed(choice)) for ids in ask.prompts for choice in range(ask.n)]


def by_scoring(ask: Ask) -> bool:
    """Whether the scores of the prompt tell the whole answer: no new token, or the likeliest one. This is what lm-eval asks for."""
    return ask.max_tokens == 0 or (ask.max_tokens == 1 and ask.temperature == 0 and ask.alternatives is not None)


def likeliest(ask: Ask, scores: Scores) -> list[int]:
    """The new ids of an answer that the scores of its prompt tell."""
    return [int(scores.top_ids_LxK[-1, 0])] * ask.max_tokens


def cut(ask: Ask, prompt: Sequence[int], new: Sequence[int], tokenizer: Any, stop_tokens: Sequence[int]) -> Answer:
    """Ends an answer before the first of the request's stop texts; without one it ends with its stop token or its length.

    A chat's text has no blanks around it, as an answer of --mode=evaluate; a completion's goes on where the prompt ends.
    """
    answered, before = list(new), [] if ask.chat else list(prompt[-CONTEXT:])

    def text_of(count: int) -> str:
        start = tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False) if before else ""
        whole = tokenizer.decode(before + answered[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if whole.startswith(start):
            return whole[len(start) :]
        return tokenizer.decode(answered[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    text, reason = text_of(len(new)), "stop" if new and new[-1] in stop_tokens else "length"
    if found := [place for stop in ask.stop if (place := text.find(stop)) >= 0]:
        place, reason = min(found), "stop"
        new = new[: next((count for count in range(1, len(new)) if any(stop in text_of(count) for stop in ask.stop)), len(new))]
        text = text[:place]
    return Answer(tuple(new), text.strip() if ask.chat else text, reason)


def given(ask: Ask, answers: Sequence[Answer]) -> list[Given]:
    """The rows to score: each prompt with an answer to it; [] where no log-probabilities are wanted."""
    if ask.alternatives is None:
        return []
    prompts = [ids for ids in ask.prompts for _ in range(ask.n)]
    return [Given(ids + answer.ids) for ids, answer in zip(prompts, answers)]


def response(
    ask: Ask, answers: Sequence[Answer], scores: Sequence[Scores], tokenizer: Any, pieces: Pieces, about: dict[str, Any]
) -> dict[str, Any]:
    """The body of a response. answers: n for each prompt in order; scores: of prompt and answer, [] where none are wanted."""
    choices = []
    for index, answer in enumerate(answers):
        number = index // ask.n
        prompt, sent = ask.prompts[number], ask.texts[number]
        tokens = prompt + answer.ids if ask.echo else answer.ids
        found = None
        if ask.alternatives is not None:
            found = listed(tokens, len(prompt) + len(answer.ids) - len(tokens), scores[index], ask.alternatives, pieces)
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.reason}
        if ask.chat:
            choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            choice["logprobs"] = found and {"content": [_chat_entry(entry) for entry in found], "refusal": None}
        else:
            if ask.echo and sent is None:
                sent = tokenizer.decode(list(prompt), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            choice["text"] = (sent or "") + answer.text if ask.echo else answer.text
            choice["logprobs"] = found and _columns(found)
        choices.append(choice)
    asked, gave = sum(map(len, ask.prompts)), sum(len(answer.ids) for answer in answers)
    usage = {"prompt_tokens": asked, "completion_tokens": gave, "total_tokens": asked + gave}
    return about | {"object": "chat.completion" if ask.chat else "text_completion", "choices": choices, "usage": usage}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A token in a list of log-probabilities: None for the first of a text, which nothing comes before."""

    piece: str
    logprob: float | None
    top: list[tuple[str, float]]  # likeliest first


def listed(tokens: Sequence[int], start: int, scores: Scores, alternatives: int, pieces: Pieces) -> list[Entry]:
    """Returns the tokens that stand at `start` and after in the scored row, each with what was likely in its place."""
    found = []
    for place, token in enumerate(tokens, start - 1):
        if place < 0:
            found.append(Entry(pieces.of(token), None, []))
            continue
        ids, values = scores.top_ids_LxK[place], scores.top_LxK[place]
        likely = {int(one): float(value) for one, value in zip(ids, values)}
        own = likely.get(token, float(scores.next_L[place]))  # a greedy token has the very number of the likeliest one
        top = [(pieces.of(one), value) for one, value in list(likely.items())[:alternatives]]
        found.append(Entry(pieces.of(token), own, top))
    return found


def _columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """Log-probabilities as a completion has them. The own token stands among the likeliest, too, as in OpenAI's API."""
    offsets, at = [], 0
    for entry in entries:
        offsets.append(at)
        at += len(entry.piece)
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        pairs = [*reversed(entry.top), *([] if entry.logprob is None else [(entry.piece, entry.logprob)])]
        # Two tokens may be spelled alike, as parts of one letter are: the likelier one is kept.
        tops.append(dict(sorted(pairs, key=lambda pair: pair[1])) if pairs else None)
    return {
        "tokens": [entry.piece for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _chat_entry(entry: Entry) -> dict[str, Any]:
    top = [{"token": piece, "logprob": value, "bytes": list(piece.encode())} for piece, value in entry.top]
    return {"token": entry.piece, "logprob": entry.logprob, "bytes": list(entry.piece.encode()), "top_logprobs": top}
