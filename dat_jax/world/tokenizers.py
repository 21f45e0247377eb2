"""The embedded world's two tokenizers, made as a user's are: `tokenizers` objects wrapped by transformers.

Both are word-level over the same words but with other ids and other special tokens, as LLaDA and Llama-3 differ, so prompts pass between
sampler and target as text. Text is lower-cased and split at white space and punctuation; a word that is not in the vocabulary is unknown.
"""

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dat_jax.world import grammar

# One special token opens each turn and one ends it; the generation prompt opens the assistant's.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TARGET_SPECIALS = ("<|pad|>", "<|unknown|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
SAMPLER_SPECIALS = ("<|pad|>", "<|unknown|>", "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>")


def target_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The target's tokenizer, with a chat template whose turns end with <|end|>."""
    tokenizer = _word_level(TARGET_SPECIALS, seed)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def sampler_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The masked-diffusion sampler's tokenizer, with LLaDA's special tokens and no chat template: it models plain text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level(SAMPLER_SPECIALS, seed + 1),
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        clean_up_tokenization_spaces=False,
    )


def _word_level(specials: tuple[str, ...], seed: int) -> Tokenizer:
    words = [*grammar.vocabulary(), *(word for word in ("answer", ":") if word not in grammar.vocabulary())]
    order = np.random.default_rng([seed, 2]).permutation(len(words))
    vocabulary = [*specials, *(words[i] for i in order)]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(vocabulary)}, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer
