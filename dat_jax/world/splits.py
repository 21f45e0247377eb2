"""Which requests are forbidden in a world, and which use each request has: drawn from the seed, disjoint by construction."""

import dataclasses
import itertools

import numpy as np

from dat_jax.world import grammar
from dat_jax.world.grammar import Request

FORBIDDEN = 8  # verbs and objects each, of 16: 64 forbidden, 128 borderline and 64 benign requests
TUNED_DIAGONALS, TRAIN_DIAGONALS = 2, 3  # of the 8; the other three are for evaluation


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

    Forbidden requests are divided along the diagonals of the verb x object square, so every forbidden verb and object occurs equally often
    in each part. Benign and borderline requests go to chats and evaluation half and half.
    """
    rng = np.random.default_rng([seed, 1])
    verbs = [verb.word for verb in grammar.VERBS]
    objects = [object_.word for object_ in grammar.OBJECTS]
    rng.shuffle(verbs)
    rng.shuffle(objects)
    forbidden_verbs, forbidden_objects = verbs[:FORBIDDEN], objects[:FORBIDDEN]
    diagonals = [
        [Request(verb, forbidden_objects[(row + shift) % FORBIDDEN]) for row, verb in enumerate(forbidden_verbs)]
        for shift in range(FORBIDDEN)
    ]
    bounds = [0, TUNED_DIAGONALS, TUNED_DIAGONALS + TRAIN_DIAGONALS, FORBIDDEN]
    tuned, train, evaluation = (
        tuple(request for diagonal in diagonals[start:stop] for request in diagonal)
        for start, stop in itertools.pairwise(bounds)
    )
    halves = {}
    for count, name in enumerate(("benign", "borderline")):
        pool = [r for r in grammar.REQUESTS if (r.verb in forbidden_verbs) + (r.object in forbidden_objects) == count]
        order = rng.permutation(len(pool))
        halves[f"{name}_chats"] = tuple(pool[i] for i in order[: len(pool) // 2])
        halves[f"{name}_evaluation"] = tuple(pool[i] for i in order[len(pool) // 2 :])
    return Splits(tuned, train, evaluation, **halves)
