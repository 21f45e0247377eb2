"""The exact judge of the embedded world; it knows a request by the behavior's id. See `dat_jax.world.judge`."""

from collections.abc import Sequence

from dat_jax.judges.judge import Exchange, Judge, Verdict, Verdicts, labelled
from dat_jax.settings import NoSettings


def load(settings: NoSettings) -> Verdicts:
    """Returns the judge."""
    del settings
    from dat_jax.world.judge import judge as exact  # here: the world's grammar takes a moment, and real models do not need it

    def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [labelled(exact(exchange.behavior, exchange.response)) for exchange in exchanges]

    return judge


def knows(item: str) -> bool:
    """Whether an id is one of the world's requests."""
    from dat_jax.world import grammar

    try:
        grammar.request(item)
    except ValueError:
        return False
    return True


JUDGE = Judge(
    name="world",
    title="The world's exact judge",
    about="The embedded world's judge is exact: compliance means that the answer holds the knowledge that was asked for.",
    load=load,
    knows=knows,
)
