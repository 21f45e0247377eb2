"""The direct request: the behavior as it is written, answered once or several times."""

import dataclasses
from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.direct_samples."""

    answers: int = 16  # per behavior
    temperature: float = 1.0

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {"answers": (self.answers >= 1, "an integer >= 1"), "temperature": (self.temperature > 0, "a number > 0")}
        check(self, key, rules)


def requests(behaviors: Sequence[Behavior]) -> list[Attempt]:
    """Returns one attempt per behavior, with its first target."""
    return [Attempt(behavior.id, behavior.text, behavior.targets[0]) for behavior in behaviors]


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Asks for each behavior as it is written."""
    del victim, context
    return requests(behaviors)


def samples(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Asks for each behavior several times, with answers sampled at a temperature."""
    del victim
    asked = [dataclasses.replace(attempt, temperature=context.settings.temperature) for attempt in requests(behaviors)]
    return [attempt for attempt in asked for _ in range(context.settings.answers)]


ATTACK = Attack(name="direct", title="Direct request", surface="text", attempts=attempts)
SAMPLES = Attack(
    name="direct_samples", title="Direct request, sampled answers", surface="text", attempts=samples, settings=Settings, tries=True
)
