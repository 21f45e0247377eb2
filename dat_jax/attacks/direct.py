"""The direct request: the behavior as it is written."""

from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.data.behaviors import Behavior


def requests(behaviors: Sequence[Behavior]) -> list[Attempt]:
    """Returns one attempt per behavior, with its first target."""
    return [Attempt(behavior.id, behavior.text, behavior.targets[0]) for behavior in behaviors]


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Asks for each behavior as it is written."""
    del victim, context
    return requests(behaviors)


ATTACK = Attack(name="direct", title="Direct request", surface="text", attempts=attempts)
