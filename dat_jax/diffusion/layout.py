"""A sampler's row: [pad .. (BOS) prompt separator] | [response EOS .. pad]; the prompt is left-padded, the response right-padded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Template:
    """The token ids around a prompt and its response."""

    begin: tuple[int, ...]
    separator: tuple[int, ...]
    end: tuple[int, ...]
    pad: int


@struct.dataclass
class Rows:
    """Token rows (B, T) with the prompt's, the response's (its end token included) and all valid positions."""

    tokens_BxT: NDArray[np.int32]
    prompt_mask_BxT: NDArray[np.bool_]
    response_mask_BxT: NDArray[np.bool_]
    valid_BxT: NDArray[np.bool_]


def template(tokenizer: Any, separator: str, begin: bool, ended: bool = True) -> Template:
    """The template of a tokenizer; it starts with BOS when `begin` is set and the tokenizer has one, and ends with EOS when `ended` is.

    Raises ValueError when the tokenizer has neither an end-of-text nor a padding token.
    """
    end, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    if end is None and pad is None:
        raise ValueError("sampler.model: its tokenizer has neither an eos_token nor a pad_token; one of them is needed")
    return Template(
        begin=(bos,) if begin and bos is not None else (),
        separator=tuple(tokenizer.encode(separator, add_special_tokens=False)),  # of the configuration: it may name control tokens
        end=() if end is None or not ended else (end,),
        pad=end if pad is None else pad,
    )


def prompt_block(template: Template, prompt_tokens: int) -> int:
    """Length of the prompt block that holds `prompt_tokens` tokens and the template around them."""
    return len(template.begin) + prompt_tokens + len(template.separator)


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], template: Template, prompt_length: int,
         response_length: int) -> Rows:  # fmt: skip
    """Token rows of prompts and responses; responses are cut to `response_length`, and end with the end token if it still fits.

    Raises ValueError when a prompt with its template does not fit into `prompt_length`.
    """
    shape = (len(prompts), prompt_length + response_length)
    tokens, prompt_mask = np.full(shape, template.pad, np.int32), np.zeros(shape, np.bool_)
    response_mask, valid = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        block = (*template.begin, *prompt, *template.separator)
        if len(block) > prompt_length:
            raise ValueError(f"a prompt of {len(prompt)} tokens and its template need {len(block)} positions; there are {prompt_length}")
        answer = (*response, *template.end)[:response_length]
        start = prompt_length - len(block)
        tokens[row, start:prompt_length] = block
        prompt_mask[row, start + len(template.begin) : prompt_length - len(template.separator)] = True
        tokens[row, prompt_length : prompt_length + len(answer)] = answer
        response_mask[row, prompt_length : prompt_length + len(answer)] = True
        valid[row, start : prompt_length + len(answer)] = True
    return Rows(tokens, prompt_mask, response_mask, valid)
