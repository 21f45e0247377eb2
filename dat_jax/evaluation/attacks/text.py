"""Attacks made of text alone: the direct request, rewrites of it, best-of-N augmentations and prefilled answers.

An attack is a list of attempts. Every method under comparison gets the same attempts: they depend on the behavior, the run's seed and
the attempt's number, never on the model. A behavior is broken by an attack when the judge calls any of its attempts compliance.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from dat_jax.data.behaviors import Behavior
from dat_jax.evaluation.attacks.rewrites import Rewrite

SIGMA = 0.4  # augmentation strength of the published best-of-N attack


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One thing to try: a prompt, what the answer is made to start with, and the response an embedding attack is to raise."""

    behavior: str
    prompt: str
    target: str
    prefill: str = ""


def direct(behaviors: Sequence[Behavior]) -> list[Attempt]:
    """The behaviors as they are written, one attempt each."""
    return [Attempt(behavior.id, behavior.text, behavior.targets[0]) for behavior in behaviors]


def rewritten(behaviors: Sequence[Behavior], rewrites: Iterable[Rewrite], form: str) -> list[Attempt]:
    """Every rewrite of the given form of the given behaviors; behaviors without one are left out and not counted."""
    targets = {behavior.id: behavior.targets[0] for behavior in behaviors}
    return [
        Attempt(rewrite.behavior, rewrite.prompt, targets[rewrite.behavior])
        for rewrite in rewrites
        if rewrite.form == form and rewrite.behavior in targets
    ]


def best_of_n(behaviors: Sequence[Behavior], attempts: int, seed: int, sigma: float = SIGMA) -> list[Attempt]:
    """N random augmentations of each behavior's text.

    Args:
      attempts: N, per behavior.
      seed: the run's seed; attempt k of a behavior depends on (seed, behavior id, k) and on nothing else.
      sigma: strength of the augmentation, 0.4 as published.

    Source: Hughes et al. 2024 (best-of-N jailbreaking). The published attack samples answers at temperature 1; with greedy decoding
      the augmentation is the only randomness, which makes N attempts weaker than the published N.
    """

    def augmented(behavior: Behavior, k: int) -> str:
        return augment(behavior.text, np.random.default_rng([seed, zlib.crc32(behavior.id.encode()), k]), sigma)

    return [Attempt(behavior.id, augmented(behavior, k), behavior.targets[0]) for behavior in behaviors for k in range(attempts)]


def prefilled(attempts: Sequence[Attempt], words: int) -> list[Attempt]:
    """The same attempts with an answer that already starts with the first words of the target.

    The judge sees these words once, followed by what the model made of them. A target that is not longer than the prefix is cut by
    one word at least, so that the model has something left to say.
    """
    return [dataclasses.replace(attempt, prefill=first_words(attempt.target, words)) for attempt in attempts]


def first_words(text: str, words: int) -> str:
    """The first words of a text with the whitespace between them kept, and always at least one word fewer than the text has."""
    starts = [match.end() for match in re.finditer(r"\S+", text)]
    kept = min(words, len(starts) - 1)
    return text[: starts[kept - 1]] if kept > 0 else ""


def augment(text: str, generator: np.random.Generator, sigma: float = SIGMA) -> str:
    """Scrambles words, then flips letter cases, then shifts characters: the three published augmentations in the published order.

    Unlike the published code, which splits and joins at blanks, line breaks and repeated blanks stay where they are.
    """
    return shift_characters(flip_cases(scramble_words(text, generator, math.sqrt(sigma)), generator, math.sqrt(sigma)), generator, sigma**3)


def scramble_words(text: str, generator: np.random.Generator, probability: float) -> str:
    """Shuffles the middle letters of words with more than three characters, each word with the given probability (0.632 as published)."""

    def scramble(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) <= 3 or generator.random() >= probability:
            return word
        middle = list(word[1:-1])
        generator.shuffle(middle)
        return word[0] + "".join(middle) + word[-1]

    return re.sub(r"\S+", scramble, text)


def flip_cases(text: str, generator: np.random.Generator, probability: float) -> str:
    """Flips the case of ASCII letters, each with the given probability (0.632 as published).

    The published code drops a non-ASCII letter that it draws; here such letters stay.
    """
    flips = generator.random(len(text)) < probability
    return "".join(letter.swapcase() if flip and letter.isascii() else letter for letter, flip in zip(text, flips))


def shift_characters(text: str, generator: np.random.Generator, probability: float) -> str:
    """Moves a printable character to the next or previous code point (p = 0.064 as published) when that is printable ASCII."""
    draws = generator.random(len(text)) < probability
    shifts = generator.choice([-1, 1], size=len(text))

    def shift(letter: str, drawn: bool, by: int) -> str:
        moved = ord(letter) + by
        return chr(moved) if drawn and letter.isprintable() and 32 <= moved <= 126 else letter

    return "".join(shift(letter, drawn, int(by)) for letter, drawn, by in zip(text, draws, shifts))
