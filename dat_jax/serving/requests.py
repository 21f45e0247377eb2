"""Requests of OpenAI's API, read and checked: a JSON body in, the token ids of its prompts and how to go on from them out.

What a client sends is text. A control token that a message or a text prompt spells stays letters; who means control tokens sends ids. A
parameter that would change the answer and is not known here is an error, not ignored: the answers are evidence.
"""

import dataclasses
import json
import secrets
import zlib
from collections.abc import Sequence
from typing import Any

from dat_jax.data import conversations, plain_text

ROLES = ("system", "user", "assistant")
ALTERNATIVES = 20  # likeliest tokens that are reported per position, at most
MOST_STOPS = 64
HOTTEST = 2.0  # temperature, as in OpenAI's API
# No answer depends on them.
UNUSED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options")
# What clients send without meaning it: parameter -> the values that ask for nothing, beside null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "suffix": ("",),
}
SHARED = ("model", "temperature", "top_p", "n", "seed", "stop", "max_tokens", "logprobs")
CHAT = (*SHARED, "messages", "max_completion_tokens", "top_logprobs")
COMPLETION = (*SHARED, "prompt", "echo", "best_of")


class Refusal(ValueError):
    """A request that is not answered, as the API says it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    @property
    def kind(self) -> str:
        """The type in the error object."""
        return {429: "rate_limit_error"}.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server can do, and what it is called."""

    names: tuple[str, ...]  # of the model, the first one in answers
    prompt_tokens: int
    new_tokens: int
    vocabulary: int
    answers: int  # of one request
    system: str | None = None  # system prompt of conversations that bring none; None: the chat template's own
    prompt_hint: str = ""  # which key sets the longest prompt
    new_hint: str = ""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request that can be answered: `n` answers to each of the prompts."""

    prompts: tuple[tuple[int, ...], ...]  # token ids
    texts: tuple[str | None, ...]  # the prompts as they were sent; None where ids were
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: tuple[str, ...]
    alternatives: int | None  # likeliest tokens to report per position; None: no log-probabilities
    echo: bool = False
    chat: bool = False

    def row_seed(self, choice: int) -> int:
        """The seed of an answer's sampling: it depends on the request's seed and the answer's number alone."""
        return zlib.crc32(f"{self.seed} {choice}".encode()) & 0x7FFFFFFF


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; Refusal for anything else, texts that are no Unicode included."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # a lone surrogate (\ud800) is no text
    except (ValueError, RecursionError) as error:
        raise Refusal("the body is no JSON text in UTF-8") from error
    if not isinstance(found, dict):
        raise Refusal(f"the body is {_kind(found)}; allowed: a JSON object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def chat(body: dict[str, Any], tokenizer: Any, limits: Limits) -> Ask:
    """Reads a chat completion's body."""
    _check_names(body, CHAT, limits)
    if not tokenizer.chat_template:
        raise Refusal("the model has no chat template; allowed: /v1/completions")
    messages = _messages(body.get("messages"))
    if limits.system is not None and not any(message["role"] == "system" for message in messages):
        messages = conversations.with_system(messages, limits.system)
    try:
        ids, _ = conversations.encode_prompt(tokenizer, messages, "all")
    except ValueError as error:
        raise Refusal(_without_place(str(error), tokenizer), "messages") from error
    wanted = _flag(body, "logprobs", False)
    alternatives = _integer(body, "top_logprobs", 0, 0, ALTERNATIVES)
    if alternatives and not wanted:
        raise Refusal("top_logprobs is given without logprobs; allowed: with logprobs = true", "top_logprobs")
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    max_tokens = _integer(body, name, limits.new_tokens, 1, limits.new_tokens, limits.new_hint)
    return _ask(
        body, limits, prompts=(tuple(ids),), texts=(None,), max_tokens=max_tokens, alternatives=alternatives if wanted else None, chat=True
    )


def completion(body: dict[str, Any], tokenizer: Any, limits: Limits) -> Ask:
    """Reads a completion's body; prompts are a text, a list of texts, ids, or a list of lists of ids."""
    _check_names(body, COMPLETION, limits)
    prompts = _prompts(body.get("prompt"), limits.vocabulary)
    begin = _beginning(tokenizer)
    ids = [begin + plain_text.encode_text(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    alternatives = body.get("logprobs")
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise Refusal("best_of is not supported; allowed: the value of n", "best_of")
    return _ask(
        body,
        limits,
        prompts=tuple(map(tuple, ids)),
        texts=tuple(prompt if isinstance(prompt, str) else None for prompt in prompts),
        max_tokens=_integer(body, "max_tokens", min(16, limits.new_tokens), 0, limits.new_tokens, limits.new_hint),
        alternatives=None if alternatives is None else _integer(body, "logprobs", 0, 0, ALTERNATIVES),
        echo=_flag(body, "echo", False),
    )


def _ask(body: dict[str, Any], limits: Limits, prompts: tuple[tuple[int, ...], ...], **found: Any) -> Ask:
    """The rest of a body, which both kinds of completions share; checks the prompts' lengths."""
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limits.prompt_tokens:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise Refusal(
                f"{which} has {len(prompt)} tokens; allowed: 1 to {limits.prompt_tokens}{limits.prompt_hint}",
                "messages" if found.get("chat") else "prompt",
                code="context_length_exceeded" if prompt else None,
            )
    n = _integer(body, "n", 1, 1, limits.answers)
    if n * len(prompts) > limits.answers:
        raise Refusal(f"{n * len(prompts)} answers are asked for; allowed: {limits.answers} (config.serve.waiting)", "n")
    seed = body.get("seed")
    return Ask(
        prompts=prompts,
        temperature=_number(body, "temperature", 1.0, 0.0, HOTTEST),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0, above=True),
        n=n,
        seed=secrets.randbits(31) if seed is None else _integer(body, "seed", 0, -(2**63), 2**63 - 1),
        stop=_stops(body.get("stop")),
        **found,
    )


def _check_names(body: dict[str, Any], known: Sequence[str], limits: Limits) -> None:
    """Refusal for a parameter that is not known, or that is known and would need what is not here; for another model."""
    for name, value in body.items():
        if name in NEUTRAL:
            neutral = value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL[name])
            if not neutral:
                raise Refusal(f"{name} is not supported; allowed: {json.dumps(NEUTRAL[name][0])}, or none", name)
        elif name not in known and name not in UNUSED:
            raise Refusal(f"the parameter {name[:80]!r} is not known; allowed: {', '.join(sorted(known))}", name[:80])
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise Refusal(f"model is {_kind(model)}; allowed: a text", "model")
    if model is not None and model not in limits.names:
        raise Refusal(f"there is no such model; allowed: {limits.names[0]!r}", "model", 404, "model_not_found")


def _messages(found: Any) -> list[dict[str, str]]:
    if not isinstance(found, list) or not found:
        raise Refusal(f"messages is {_kind(found)}; allowed: a list of one or more objects with role and content", "messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(found)]


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refusal(f"{place} is {_kind(message)}; allowed: an object with role and content", "messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        shown = repr(role[:80]) if isinstance(role, str) else _kind(role)
        raise Refusal(f"{place}.role is {shown}; allowed: {', '.join(ROLES)}", "messages")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise Refusal(f"{place}.{name[:80]} is not supported; allowed: role and content", "messages")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise Refusal(f"{place}.content has a part that is no text; allowed: parts {{'type': 'text', 'text': TEXT}}", "messages")
        content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise Refusal(f"{place}.content is {_kind(content)}; allowed: a text", "messages")
    return {"role": role, "content": content}


def _prompts(found: Any, vocabulary: int) -> list[str | list[int]]:
    many = [found] if isinstance(found, str) or (isinstance(found, list) and found and _is_id(found[0])) else found
    if not isinstance(many, list) or not many:
        raise Refusal(f"prompt is {_kind(found)}; allowed: a text, token ids, or a list of texts or of lists of token ids", "prompt")
    for prompt in many:
        if isinstance(prompt, str):
            continue
        if not isinstance(prompt, list) or not all(map(_is_id, prompt)):
            raise Refusal("prompt holds what is neither a text nor a list of token ids", "prompt")
        if wrong := next((token for token in prompt if not 0 <= token < vocabulary), None):
            raise Refusal(f"prompt holds the token id {wrong}; allowed: 0 to {vocabulary - 1}", "prompt")
    return many


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text that is no chat: BOS, for the models that were trained so."""
    return [tokenizer.bos_token_id] if tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else []


def _stops(found: Any) -> tuple[str, ...]:
    many = [found] if isinstance(found, str) else [] if found is None else found
    if not isinstance(many, list) or len(many) > MOST_STOPS or not all(isinstance(text, str) and text for text in many):
        raise Refusal(f"stop is {_kind(found)}; allowed: a text that is not empty, or a list of at most {MOST_STOPS}", "stop")
    return tuple(many)


def _integer(body: dict[str, Any], name: str, default: int, low: int, high: int, hint: str = "") -> int:
    value = body.get(name)
    if value is None:
        return default
    if not _is_id(value) or not low <= value <= high:
        raise Refusal(f"{name} is {_kind(value)}; allowed: an integer from {low} to {high}{hint}", name)
    return value


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float, above: bool = False) -> float:
    value = body.get(name)
    if value is None:
        return default
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fine or (above and value == low):
        raise Refusal(f"{name} is {_kind(value)}; allowed: a number {'above' if above else 'from'} {low:g} to {high:g}", name)
    return float(value)


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refusal(f"{name} is {_kind(value)}; allowed: true or false", name)
    return value


def _kind(value: Any) -> str:
    """A value in an error: numbers as they are, of all else the kind, which may hold what somebody wrote."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value!r:.40}"
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return kinds[type(value)]


def _without_place(message: str, tokenizer: Any) -> str:
    """An error about a tokenizer without the folder that it lies in, which is nobody's business."""
    return message.replace(f"of {tokenizer.name_or_path!r} ", "")
