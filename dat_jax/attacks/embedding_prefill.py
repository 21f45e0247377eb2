"""Embedding attack on the answer's suffix: the answer's first words are given, and the prompt is perturbed to make the rest likely.

Two surfaces at once. A refusal is mostly decided by an answer's first words; who gives these leaves the attack the easier part.
"""

import dataclasses
from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.embedding import toward
from dat_jax.attacks.prefill import continued
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.embedding_prefill."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, iterate="best"))
    target_eot: bool = True  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    lengths: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20)  # words of the target that the answer is made to start with

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        fine = len(self.lengths) > 0 and all(words >= 1 for words in self.lengths)
        check(self, key, {"lengths": (fine, "one or more integers >= 1")})
        self.perturbation.validate_attack(f"{key}.perturbation")


def of_length(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Gives as many words as the variant's name says and perturbs the direct request toward what follows them."""
    asked = toward(requests(behaviors), context.settings)
    return victim.perturb(continued(asked, int(context.variant)), context.settings.perturbation)


ATTACK = Attack(
    name="embedding_prefill", title="Embedding attack, prefilled words", surface="embedding", attempts=of_length, settings=Settings,
    adaptive=True, uses_target=True, raises=True, choices=("lengths",),
    variants=lambda settings, forms: [str(words) for words in settings.lengths],
    curve="words of the answer that are given, with a perturbed prompt",
)  # fmt: skip
