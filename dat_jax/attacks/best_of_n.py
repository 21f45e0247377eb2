"""Best-of-N: random augmentations of the request's text, N attempts per behavior (Hughes et al. 2024, best-of-N jailbreaking).

Answers are sampled at temperature 1, as published. With greedy decoding (temperature 0) the augmentation is the only randomness, which
makes N attempts weaker than the published N.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check

SIGMA = 0.4  # augmentation strength of the published attack


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.best_of_n."""

    attempts: int = 16  # N, per behavior (published: up to 10,000)
    sigma: float = SIGMA  # strength of the augmentation
    temperature: float = 1.0  # of the answers

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {"attempts": (self.attempts >= 1, "an integer >= 1"), "sigma": (0 < self.sigma <= 1, "a number above 0 up to 1")}
        check(self, key, rules | {"temperature": (self.temperature >= 0, "a number >= 0 (0: greedy)")})


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Sends N augmentations of each behavior; attempt k depends on (seed, behavior id, k) and on nothing else."""
    del victim
    settings = context.settings

    def augmented(behavior: Behavior, k: int) -> str:
        return augment(behavior.text, np.random.default_rng([context.seed, zlib.crc32(behavior.id.encode()), k]), settings.sigma)

    return [
        Attempt(b.id, augmented(b, k), b.targets[0], temperature=settings.temperature) for b in behaviors for k in range(settings.attempts)
    ]


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


ATTACK = Attack(name="best_of_n", title="Best of N", surface="text", attempts=attempts, settings=Settings, tries=True)
