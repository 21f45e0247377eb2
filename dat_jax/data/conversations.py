"""Conversations as fixed arrays: one layout for training, decoding and infilling.

    tokens_BxT = [pad .. prompt | response .. pad]        P prompt positions, R response positions, T = P + R

The prompt is left-padded inside its block and the response right-padded inside its own. So the response is a static slice, one
perturbation delta_BxPxD fits a behavior's away and toward row, and the prompt block alone is what decoding starts from. Prompt and response
are tokenized apart and their ids joined: a token never spans the border, whatever the response.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np

from dat_jax.data import plain_text
from dat_jax.data.chat_templates import render

Message = dict[str, str]
Dialog = Sequence[Message]
Array = Any  # numpy's on the host, jax's on devices
MARK = "\u2983{}\u2984"  # stands for the words of a message where its place in a template is looked for
PAD = 0  # what padding positions hold; they are masked everywhere, so any id would do


@flax.struct.dataclass
class Conversations:
    """Rows of one layout: int32 tokens and three boolean masks, all (B, T)."""

    tokens_BxT: Array
    prompt_mask_BxT: Array  # what may be perturbed or infilled
    response_mask_BxT: Array  # what is scored
    valid_BxT: Array  # what is not padding

    def rows(self, index) -> "Conversations":
        """Returns the selected rows."""
        return Conversations(self.tokens_BxT[index], self.prompt_mask_BxT[index], self.response_mask_BxT[index], self.valid_BxT[index])


def lay_out(prompts, perturbable, responses, prompt_length: int, response_length: int) -> Conversations:
    """Lays token id lists out as arrays; a response longer than its block is cut, a longer prompt is an error.

    `perturbable` holds a list of booleans per prompt. Raises ValueError naming the row and the two lengths.
    """
    shape = (len(prompts), prompt_length + response_length)
    tokens = np.full(shape, PAD, np.int32)
    prompt_mask, response_mask, valid = (np.zeros(shape, bool) for _ in range(3))
    for i, (prompt, allowed, response) in enumerate(zip(prompts, perturbable, responses)):
        if not 0 < len(prompt) <= prompt_length:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; allowed: 1 to config.data.prompt_length = {prompt_length}")
        response = response[:response_length]
        start, end = prompt_length - len(prompt), prompt_length + len(response)
        tokens[i, start:prompt_length], tokens[i, prompt_length:end] = prompt, response
        prompt_mask[i, start:prompt_length] = allowed
        response_mask[i, prompt_length:end] = True
        valid[i, start:end] = True
    return Conversations(tokens, prompt_mask, response_mask, valid)


def check_tokenizer(tokenizer) -> None:
    """Raises ValueError when a tokenizer has no chat template or gives no character offsets."""
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; allowed: a chat model's tokenizer")
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no tokenizer.json (a fast tokenizer); it is needed for offsets")


def _spans(tokenizer, messages: Dialog, rendered: str) -> list[plain_text.Span]:
    """Returns each message's character span in the rendered prompt, found by rendering unique stand-ins for the contents.

    Searching for the content itself would find it in the template too ("assistant" stands in many default system prompts).
    """
    marks = [MARK.format(i) for i in range(len(messages))]
    template = render(tokenizer, [{**m, "content": mark} for m, mark in zip(messages, marks)], generation_prompt=True)
    spans, at, cursor = [], 0, 0
    for message, mark in zip(messages, marks):
        found = template.find(mark, cursor)
        if found < 0:
            raise ValueError(f"the chat template of {tokenizer.name_or_path!r} leaves out a message of role {message['role']!r}")
        at += found - cursor
        content = message["content"] if rendered.startswith(message["content"], at) else message["content"].strip()
        if not rendered.startswith(content, at):
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} rewrites the text of a message; its tokens cannot be told apart"
            )
        spans.append((at, at + len(content)))
        at, cursor = at + len(content), found + len(mark)
    return spans


def encode_prompt(tokenizer, messages: Dialog, perturb: str) -> tuple[list[int], list[bool]]:
    """Returns the ids of a conversation up to where the assistant speaks, and which of them the perturbation may reach.

    Control tokens that a message spells stay letters. `perturb`: "user" the users' words alone, "user+template" everything but a system
    prompt's words, "all" every token (the reference).
    """
    rendered = render(tokenizer, messages, generation_prompt=True)
    spans = _spans(tokenizer, messages, rendered)
    encoded = plain_text.encode(tokenizer, rendered, spans)

    def inside(role):
        chosen = [span for span, message in zip(spans, messages) if message["role"] == role]
        return [any(a < end and b > start for start, end in chosen) and b > a for a, b in encoded.offsets]

    ids = encoded.ids
    if perturb == "user":
        return ids, inside("user")
    if perturb == "user+template":
        return ids, [not system for system in inside("system")]
    return ids, [True] * len(ids)


def encode_response(tokenizer, messages: Dialog) -> list[int]:
    """Returns the ids of the last message (the assistant's) up to and with the token that ends its turn; [] for an empty message.

    Control tokens spelled in the message stay letters.
    """
    if not messages[-1]["content"]:
        return []
    tail, span = _last_message(tokenizer, messages)
    encoded = plain_text.encode(tokenizer, tail, [span])
    ids, special = encoded.ids, set(plain_text.control_tokens(tokenizer).values())
    end = 1 + max((i for i, (a, b) in enumerate(encoded.offsets) if a < span[1] and b > span[0]), default=-1)
    closing = next((i for i in range(end, len(ids)) if ids[i] in special), None)
    if closing is not None:
        return ids[: closing + 1]  # what a template puts after the end of the turn (a newline) is nobody's to predict
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} ends a turn with no special token and has no eos_token")
    return ids[:end] + [tokenizer.eos_token_id]


def first_tokens(tokenizer, messages: Dialog, count: int) -> str:
    """Returns the beginning of the last message that its first tokens spell, so many or at least one fewer than it has.

    Tokens are counted where they stand in the conversation. A character of several tokens is not cut: it counts as its first one.
    """
    tail, (start, end) = _last_message(tokenizer, messages)
    ends = [min(b, end) for a, b in plain_text.encode(tokenizer, tail, [(start, end)]).offsets if a < end and b > start]
    whole = [start] + [at for at in ends[:count] if at < end]  # where the tokens that are left spell more than the end of a character
    return tail[start : whole[-1]]


def _last_message(tokenizer, messages: Dialog) -> tuple[str, plain_text.Span]:
    """Returns what the template writes after the generation prompt, and where the last message's own words are in it.

    A stand-in for the words shows what the template writes around them.
    """
    *before, last = messages
    prompt = render(tokenizer, before, generation_prompt=True)
    whole, around = (render(tokenizer, [*before, {**last, "content": words}], False) for words in (last["content"], MARK.format(0)))
    opening, found, closing = around.removeprefix(prompt).partition(MARK.format(0))
    tail = whole.removeprefix(prompt)
    if not found or not whole.startswith(prompt) or not tail.endswith(closing):
        # Some generation prompts open a block (an empty chain of thought, say) that the finished conversation does not repeat.
        return last["content"] + (tokenizer.eos_token or ""), (0, len(last["content"]))
    return tail, (len(opening) if tail.startswith(opening) else 0, len(tail) - len(closing))


def stop_tokens(tokenizer) -> tuple[int, ...]:
    """Returns the ids that end the assistant's turn: the template's own and the tokenizer's eos."""
    ends = {encode_response(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])[-1]}
    return tuple(sorted(ends | ({tokenizer.eos_token_id} - {None})))


def with_system(messages: Dialog, system: str | None) -> list[Message]:
    """Returns the messages with the system prompt in front, or replaced by it; None leaves them as they are."""
    if system is None:
        return list(messages)
    return [{"role": "system", "content": system}] + [m for m in messages if m["role"] != "system"]


def prompt_tokens(tokenizer, messages: Dialog, system: str | None = None) -> int:
    """Returns how many tokens the messages before an answer take, chat template included."""
    return len(encode_prompt(tokenizer, with_system(messages, system), "all")[0])


def tokenize(
    tokenizer,
    dialogs: Sequence[Dialog],
    prompt_length: int,
    response_length: int,
    perturb: str = "user",
    system: str | None = None,
    names: Sequence[str] | None = None,
) -> Conversations:
    """Turns conversations into arrays with the tokenizer's own chat template; the last message of each is the assistant's.

    An empty last message makes a prompt to decode from. `names` (file and line, behavior ids) are used in errors. Raises ValueError naming
    the conversation whose prompt does not fit, with its length and the one allowed.
    """
    check_tokenizer(tokenizer)
    prompts, allowed, responses = [], [], []
    for i, dialog in enumerate(dialogs):
        messages = with_system(dialog, system)
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{names[i] if names else f'conversation {i}'} ends with role {messages[-1]['role']!r}; allowed: assistant")
        ids, mask = encode_prompt(tokenizer, messages[:-1], perturb)
        if len(ids) > prompt_length:
            name = names[i] if names else f"conversation {i}"
            raise ValueError(f"the prompt of {name} has {len(ids)} tokens; allowed: config.data.prompt_length = {prompt_length}")
        prompts.append(ids)
        allowed.append(mask)
        responses.append(encode_response(tokenizer, messages))
    return lay_out(prompts, allowed, responses, prompt_length, response_length)
