"""Which requests are forbidden in a world, and which use each request has: drawn from the seed, disjoint by construction."""

import dataclasses
import itertools

import numpy as np

from dat_jax.world import grammar
from dat_jax.world.grammar import Request

FORBIDDEN = 8  # verbs and objects each, of 16: 64 forbidden, 128 borderline and 64 benign requests
TUNED_DIAGONALS, TRAIN_DIAGONALS, EVALUATION_DIAGONALS = 2, 3, 3  # 8 requests each


@dataclasses.dataclass(frozen=True)
class Splits:
    """The requests of a world by use.

    tuned, train and evaluation are the forbidden ones: seen by ordinary safety tuning, by adversarial training, by evaluation. Benign and
    borderline requests are for chats (utility data) or for evaluation.
    """

    tuned: tuple[Request, ...]
    train: tuple[Request, ...]
    evaluation: tuple[Request, ...]
    benign_chats: tuple[Request, ...]
    benign_evaluation: tuple[Request, ...]
    borderline_chats: tuple[Request, ...]
    borderline_evaluation: tuple[Request, ...]


def draw(seed: int) -> Splits:
    """Draw the splits of the world with this seed.

    Each square of verbs x objects (forbidden x forbidden, forbidden x other, other x forbidden, other x other) is divided along its
    diagonals, so that every word occurs equally often in each part: knowledge that no chat held would be forgotten in training.
    """
    rng = np.random.default_rng([seed, 1])
    verbs = [verb.word for verb in grammar.VERBS]
    objects = [object_.word for object_ in grammar.OBJECTS]
    rng.shuffle(verbs)
    rng.shuffle(objects)
    (bad_verbs, verbs), (bad_objects, objects) = ((words[:FORBIDDEN], words[FORBIDDEN:]) for words in (verbs, objects))
    tuned, train, evaluation = _divide(bad_verbs, bad_objects, (TUNED_DIAGONALS, TRAIN_DIAGONALS, EVALUATION_DIAGONALS))
    benign, other_object, other_verb = (
        _divide(verbs, objects, (4, 4)) for verbs, objects in ((verbs, objects), (bad_verbs, objects), (verbs, bad_objects))
    )
    borderline = [first + second for first, second in zip(other_object, other_verb, strict=True)]
    return Splits(tuned, train, evaluation, *benign, *borderline)


def _divide(verbs: list[str], objects: list[str], diagonals: tuple[int, ...]) -> list[tuple[Request, ...]]:
    """Requests of a square of verbs x objects in parts of so many diagonals each."""
    side = len(verbs)
    bounds = itertools.accumulate(diagonals, initial=0)
    return [
        tuple(Request(verb, objects[(row + shift) % side]) for shift in range(start, stop) for row, verb in enumerate(verbs))
        for start, stop in itertools.pairwise(bounds)
    ]
