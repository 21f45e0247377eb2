"""Embedding attack on a suffix: tokens are put behind the request, and they alone are perturbed.

The request itself stays as it was, so whatever breaks was asked for in its own words (Schwinn et al., arXiv 2402.09063). The attack without
a bound is `embedding_unbounded`.
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
    """config.attacks.embedding_suffix."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, radius=1.0, iterate="best"))
    target_eot: bool = True  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    suffix: str = "! ! ! ! ! ! ! !"  # what is put behind the request, after a space
    restarts: int = 2  # of embedding_suffix: the first from zero, the others from random points of the ball; any of them may break
    radii: tuple[float, ...] = (0.3, 0.5, 1.0, 2.0, 5.0)  # of embedding_suffix_radius, the curve, in place of perturbation.radius

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        fine = len(self.radii) > 0 and all(radius > 0 for radius in self.radii)
        check(self, key, {"suffix": (bool(self.suffix.strip()), "some text"), "restarts": (self.restarts >= 1, "an integer >= 1"),
                          "radii": (fine, "one or more numbers > 0, in mean embedding norms")})  # fmt: skip
        self.perturbation.validate_attack(f"{key}.perturbation")


def with_suffix(attempts: Sequence[Attempt], suffix: str) -> list[Attempt]:
    """The attempts with a suffix behind their prompts, to which a perturbation is confined."""
    return [dataclasses.replace(attempt, prompt=f"{attempt.prompt} {suffix}", suffix=suffix) for attempt in attempts]


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the suffix of the direct request, from every start."""
    asked = with_suffix(toward(requests(behaviors), context.settings), context.settings.suffix)
    return from_starts(asked, context.settings.perturbation, context.settings.restarts, victim)


def at_radius(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the suffix of the direct request within the radius that is the variant's name."""
    asked = with_suffix(toward(requests(behaviors), context.settings), context.settings.suffix)
    return victim.perturb(asked, dataclasses.replace(context.settings.perturbation, radius=float(context.variant)))


ATTACK = Attack(
    name="embedding_suffix", title="Embedding attack on a suffix", surface="embedding", attempts=attempts, settings=Settings, adaptive=True,
    uses_target=True, raises=True, choices=("radii",),
)  # fmt: skip
RADII = dataclasses.replace(
    ATTACK, name="embedding_suffix_radius", title="Embedding attack on a suffix, of radius", attempts=at_radius, group="embedding_suffix",
    variants=lambda settings, forms: [f"{radius:g}" for radius in settings.radii],
    curve="radius of the suffix's perturbation, in mean embedding norms",
)  # fmt: skip
