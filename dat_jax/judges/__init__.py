"""The judges. A new one is a file here and a row in JUDGES."""

from typing import Any

from dat_jax.judges import refusal_prefix, refusal_topic, world
from dat_jax.judges.judge import Judge, Verdicts

JUDGES: dict[str, Judge] = {judge.name: judge for judge in (refusal_prefix.JUDGE, refusal_topic.JUDGE, world.JUDGE)}


def load(name: str, config: Any) -> Verdicts:
    """Returns the judge of a name of JUDGES with its settings from a whole configuration."""
    return JUDGES[name].load(JUDGES[name].read_settings(config))
