"""Embedding attack on top of text attacks: the texts that these tried on the same model, with a perturbation of their embeddings.

A text that nearly breaks a model leaves a perturbation less to do. The two together bound what a stronger search over text could find from
there. The texts are read from the answers to the other attack, so they are those that were really sent.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.embedding import toward
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.embedding_text."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, iterate="best"))
    target_eot: bool = False  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    # Names of attacks, or attack:variant, whose texts are perturbed; (): all text attacks of the run but those that `embedding` and
    # `embedding+rewrite` are put on
    on: tuple[str, ...] = ()
    most: int = 8  # texts per behavior and attack: those after which the model finds the target likeliest

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"most": (self.most >= 1, "an integer >= 1")})
        self.perturbation.validate_attack(f"{key}.perturbation")


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the texts that another attack tried on these behaviors."""
    found = []
    for behavior in behaviors:
        tried = toward([attempt for attempt in context.given if attempt.behavior == behavior.id], context.settings)
        found += likeliest(tried, victim, context.settings.most)
    return victim.perturb(found, context.settings.perturbation)


def likeliest(tried: list[Attempt], victim: Victim, most: int) -> list[Attempt]:
    """So many of the attempts, in their order: those after which the target is likeliest; of equal ones the first."""
    if len(tried) <= most:
        return tried
    chosen = np.argsort(-np.array(victim.log_likelihood(tried)), kind="stable")[:most]
    return [tried[place] for place in sorted(chosen)]


ATTACK = Attack(
    name="embedding+text", title="Embedding attack on", surface="embedding", attempts=attempts, settings=Settings, group="embedding_text",
    adaptive=True, uses_target=True, raises=True, given="answers", choices=("on",),
)  # fmt: skip
