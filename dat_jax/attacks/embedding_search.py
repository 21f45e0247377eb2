"""Curves of the embedding attack over what it costs: gradient steps, and restarts from random points of the ball.

A model whose curve keeps rising was not attacked hard enough; one that breaks only after many restarts hides its gradients
(Athalye et al., arXiv 1802.00420).
"""

import dataclasses
from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.embedding import from_starts, toward
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.embedding_search: a radius at which some behaviors hold and some do not, where a curve has something to show."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, radius=1.0, iterate="best"))
    target_eot: bool = True  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    steps: tuple[int, ...] = (5, 10, 20, 50, 100, 200)  # of embedding_steps, from one start at zero
    restarts: tuple[int, ...] = (1, 2, 4, 8)  # of embedding_restarts: the first from zero, the others from random points

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {name: (len(counts) > 0 and all(n >= 1 for n in counts), "one or more integers >= 1")
                 for name, counts in (("steps", self.steps), ("restarts", self.restarts))}  # fmt: skip
        check(self, key, rules)
        self.perturbation.validate_attack(f"{key}.perturbation")


def of_steps(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request with as many steps as the variant's name says."""
    how = dataclasses.replace(context.settings.perturbation, steps=int(context.variant))
    return victim.perturb(toward(requests(behaviors), context.settings), how)


def of_restarts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request from as many starts as the variant's name says; every one is answered and any may break it."""
    asked = toward(requests(behaviors), context.settings)
    return from_starts(asked, context.settings.perturbation, int(context.variant), victim)


STEPS = Attack(
    name="embedding_steps", title="Embedding attack of steps", surface="embedding", attempts=of_steps, settings=Settings,
    group="embedding_search", adaptive=True, uses_target=True, raises=True, choices=("steps", "restarts"),
    variants=lambda settings, forms: [str(count) for count in settings.steps], curve="steps of the embedding attack",
)  # fmt: skip
RESTARTS = dataclasses.replace(
    STEPS, name="embedding_restarts", title="Embedding attack of restarts", attempts=of_restarts,
    variants=lambda settings, forms: [str(count) for count in settings.restarts], curve="restarts of the embedding attack",
)  # fmt: skip
