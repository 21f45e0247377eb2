"""Attacks on the prompt's embeddings, alone and on top of a rewrite.

Nobody can send embeddings through a chat window: this attack stands for everything that the discrete attacks do not find, and bounds
what a stronger search might. It is the training's own inner maximisation with settings of the evaluation's own (steps, radius), so that a
model is not measured by the very attack it was trained on alone. The target is the behavior's harmful response; the answer is then decoded
from the perturbed embeddings and judged like any other. The target itself is never shown to the judge.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.rewrite import chosen_forms, rewritten
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.embedding."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, iterate="best"))
    target_eot: bool = True  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    forms: tuple[str, ...] = ()  # rewrite forms that embedding+rewrite is put on top of; (): all that are tried
    radii: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # of embedding_radius, the attack on the direct request

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        fine = len(self.radii) > 0 and all(radius > 0 for radius in self.radii)
        check(self, key, {"radii": (fine, "one or more numbers > 0, in mean embedding norms")})
        self.perturbation.validate_attack(f"{key}.perturbation")


def toward(attempts: Sequence[Attempt], settings: Any) -> list[Attempt]:
    """The attempts with the target that is raised: with the end of the turn or, where the settings say so, without.

    With it, the judge is given what follows a target that announces an answer (data/openings.py).
    """
    return [dataclasses.replace(attempt, target_eot=settings.target_eot) for attempt in attempts]


def from_starts(asked: Sequence[Attempt], how: Perturbation, restarts: int, victim: Victim) -> list[Attempt]:
    """The attempts perturbed from so many starts: the first from zero, the others from random points of the ball."""
    return side_by_side([victim.perturb(asked, how, restart) for restart in range(restarts)])


def side_by_side(found: Sequence[Sequence[Attempt]]) -> list[Attempt]:
    """Several perturbations of the same attempts in one list, those of an attempt together."""
    return [attempt for together in zip(*found) for attempt in together]


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request."""
    return victim.perturb(toward(requests(behaviors), context.settings), context.settings.perturbation)


def on_rewrites(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs each rewrite of the form."""
    return victim.perturb(toward(rewritten(behaviors, context), context.settings), context.settings.perturbation)


def at_radius(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request within the radius that is the variant's name."""
    how = dataclasses.replace(context.settings.perturbation, radius=float(context.variant))
    return victim.perturb(toward(requests(behaviors), context.settings), how)


def every_radius(settings: Settings, forms: Sequence[str]) -> Sequence[str]:
    """The variants of the curve over the radius."""
    del forms
    return [f"{radius:g}" for radius in settings.radii]


ATTACK = Attack(
    name="embedding", title="Embedding attack", surface="embedding", attempts=attempts, settings=Settings, adaptive=True, uses_target=True,
    raises=True, choices=("forms", "radii"),
)  # fmt: skip
ON_REWRITES = dataclasses.replace(
    ATTACK, name="embedding+rewrite", title="Embedding attack on rewrite", attempts=on_rewrites, group="embedding",
    variants=lambda settings, forms: chosen_forms(settings.forms, forms, "config.attacks.embedding.forms"),
)  # fmt: skip
RADII = dataclasses.replace(
    ATTACK, name="embedding_radius", title="Embedding attack of radius", attempts=at_radius, group="embedding", variants=every_radius,
    curve="radius, in mean embedding norms",
)  # fmt: skip
