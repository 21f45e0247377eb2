"""Prefilled answers: the model goes on from the first words of the harmful response; on the request and on its rewrites.

Curves over how much is given, in words or in tokens of the model under attack: a model that refuses by its first tokens alone breaks
after few of them (Qi et al., arXiv 2406.05946, who give the first k tokens).
"""

import dataclasses
import re
from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.rewrite import every_form, rewritten
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.data.conversations import first_tokens, with_system
from dat_jax.settings import check


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.prefill."""

    words: int = 5  # of the target that the answer is made to start with
    lengths: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20)  # words of prefill_words, the curve over them
    tokens: tuple[int, ...] = tuple(range(1, 21))  # tokens of prefill_tokens, the curve over them

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        curves = {name: (len(counts) > 0 and all(n >= 1 for n in counts), "one or more integers >= 1")
                  for name, counts in (("lengths", self.lengths), ("tokens", self.tokens))}  # fmt: skip
        check(self, key, {"words": (self.words >= 1, "an integer >= 1"), **curves})


def prefilled(attempts: Sequence[Attempt], words: int) -> list[Attempt]:
    """Returns the same attempts with an answer that already starts with the first words of the target.

    The judge sees these words once, followed by what the model made of them. A target that is not longer than the prefix is cut by
    one word at least, so that the model has something left to say.
    """
    return [dataclasses.replace(attempt, prefill=first_words(attempt.target, words)) for attempt in attempts]


def continued(attempts: Sequence[Attempt], words: int) -> list[Attempt]:
    """Returns the prefilled attempts with a target that is what follows the given words: an optimizing attack then raises the rest."""
    return [dataclasses.replace(a, target=a.target[len(a.prefill) :].lstrip()) for a in prefilled(attempts, words)]


def first_words(text: str, words: int) -> str:
    """The first words of a text with the whitespace between them kept, and always at least one word fewer than the text has."""
    starts = [match.end() for match in re.finditer(r"\S+", text)]
    kept = min(words, len(starts) - 1)
    return text[: starts[kept - 1]] if kept > 0 else ""


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Prefills the answer to the direct request."""
    del victim
    return prefilled(requests(behaviors), context.settings.words)


def on_rewrites(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Prefills the answer to each rewrite of the form."""
    del victim
    return prefilled(rewritten(behaviors, context), context.settings.words)


def of_length(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Prefills as many words as the variant's name says."""
    del victim
    return prefilled(requests(behaviors), int(context.variant))


def of_tokens(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Prefills as many of the target's tokens as the variant's name says, in the tokenizer of the model under attack."""

    def beginning(asked: Attempt) -> str:
        told = [{"role": "user", "content": asked.prompt}, {"role": "assistant", "content": asked.target}]
        return first_tokens(victim.model.tokenizer, with_system(told, victim.decoding.system), int(context.variant))

    return [dataclasses.replace(asked, prefill=beginning(asked)) for asked in requests(behaviors)]


def every_length(settings: Settings, forms: Sequence[str]) -> Sequence[str]:
    """The variants of the curve over the length."""
    del forms
    return [str(words) for words in settings.lengths]


ATTACK = Attack(
    name="prefill",
    title="Prefilled answer",
    surface="prefill",
    attempts=attempts,
    settings=Settings,
    uses_target=True,
    choices=("lengths", "tokens"),
)
ON_REWRITES = dataclasses.replace(
    ATTACK, name="prefill+rewrite", title="Prefilled answer to rewrite", attempts=on_rewrites, group="prefill", variants=every_form
)
LENGTHS = dataclasses.replace(
    ATTACK, name="prefill_words", title="Prefilled answer of words", attempts=of_length, group="prefill", variants=every_length,
    curve="words of the answer that are given",
)  # fmt: skip
TOKENS = dataclasses.replace(
    LENGTHS, name="prefill_tokens", title="Prefilled answer of tokens", attempts=of_tokens,
    variants=lambda settings, forms: [str(count) for count in settings.tokens], curve="tokens of the answer that are given",
)  # fmt: skip
