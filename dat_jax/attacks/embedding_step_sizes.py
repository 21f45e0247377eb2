"""Embedding attack with several settings of its search, any of which may break a behavior: one setting alone understates what can be found.

A long step jumps over what a short one finds, and a short one does not get there. Which is better depends on the model, which may have been
trained against one of them. Every combination of step size, optimizer, radius and start is answered and judged. So with greedy answers the
set of broken behaviors never shrinks when a combination is added.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.embedding import side_by_side, toward
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check
from dat_jax.training.perturbation import OPTIMIZERS, Perturbation


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.embedding_step_sizes."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, radius=1.0, iterate="best"))
    step_sizes: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)  # in place of perturbation.step_size
    optimizers: tuple[str, ...] = ("sign",)  # in place of perturbation.optimizer
    radii: tuple[float, ...] = ()  # in place of perturbation.radius; (): that one alone. Several mean norms: unbounded for all that counts
    restarts: int = 2  # the first from zero, the others from random points of the ball
    target_eot: bool = False  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {
            "step_sizes": (len(self.step_sizes) > 0 and all(size > 0 for size in self.step_sizes), "one or more numbers > 0"),
            "optimizers": (len(self.optimizers) > 0 and set(self.optimizers) <= set(OPTIMIZERS), f"one or more of {', '.join(OPTIMIZERS)}"),
            "radii": (all(radius > 0 for radius in self.radii), "numbers > 0, in mean embedding norms, or none"),
            "restarts": (self.restarts >= 1, "an integer >= 1"),
        }
        check(self, key, rules)
        self.perturbation.validate_attack(f"{key}.perturbation")


def searches(settings: Settings) -> Iterator[tuple[Perturbation, int]]:
    """Every combination as (how, restart); an added one comes in between, and the others stay what they are."""
    radii = settings.radii or (settings.perturbation.radius,)
    for optimizer, radius, size, restart in itertools.product(settings.optimizers, radii, settings.step_sizes, range(settings.restarts)):
        yield dataclasses.replace(settings.perturbation, optimizer=optimizer, radius=radius, step_size=size), restart


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request in every way; each is an attempt."""
    asked = toward(requests(behaviors), context.settings)
    found = [victim.perturb(asked, how, restart) for how, restart in searches(context.settings)]
    return side_by_side(found)


ATTACK = Attack(
    name="embedding_step_sizes", title="Embedding attack, best of several step sizes", surface="embedding", attempts=attempts,
    settings=Settings, adaptive=True, tries=True, uses_target=True, raises=True,
)  # fmt: skip
