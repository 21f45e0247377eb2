"""The judges. A new one is a file here and a row in JUDGES."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dat_jax.judges import endpoint, ensemble, harmbench, over_refusal, refusal_prefix, refusal_topic, strongreject, world
from dat_jax.judges.judge import Exchange, Judge, Verdict, Verdicts
from dat_jax.judges.local import Local

_SINGLE = (
    refusal_prefix.JUDGE,
    refusal_topic.JUDGE,
    *harmbench.JUDGES,
    *strongreject.JUDGES,
    endpoint.JUDGE,
    *over_refusal.JUDGES,
    world.JUDGE,
)
JUDGES: dict[str, Judge] = {judge.name: judge for judge in _SINGLE}


def load(name: str, config: Any, mesh: Any = None) -> Verdicts:
    """Returns the judge of a name of JUDGES with its settings from a whole configuration; a judge that is a model lies on the mesh.

    Raises ValueError naming the key of a file or folder that the judge cannot work with.
    """
    judge = JUDGES[name]
    settings = judge.read_settings(config)
    return judge.load(settings, config, mesh) if judge.placed else judge.load(settings)


def members(name: str, config: Any) -> tuple[str, ...]:
    """The judges whose verdicts a judge is made from; () for one that reads answers itself."""
    judge = JUDGES[name]
    return judge.members(judge.read_settings(config)) if judge.members else ()


def needed(names: Sequence[str], config: Any) -> list[str]:
    """The judges of `names`, each after those that its verdicts are made from."""
    return list(dict.fromkeys(one for name in names for one in (*members(name, config), name)))


def local_models(names: Sequence[str], config: Any) -> list[str]:
    """Of the judges of `names` and those that they are made from, the ones that are models of the user's in this process' memory."""
    return [name for name in needed(names, config) if issubclass(JUDGES[name].settings, Local)]


def fallback(names: Sequence[str]) -> str:
    """The first judge of `names` that knows harmless prompts; the list of refusal phrases where none does."""
    return next((name for name in names if JUDGES[name].harmless), refusal_prefix.JUDGE.name)


def _members(settings: ensemble.Settings) -> tuple[str, ...]:
    """The judges of an ensemble; ValueError for less than two, and for names that are no single judge."""
    single = [name for name, judge in JUDGES.items() if judge.members is None and judge.attacks]
    if len(settings.of) < 2 or not set(settings.of) <= set(single):
        raise ValueError(f"config.judges.ensemble.of is {settings.of!r}; allowed: two or more of {', '.join(single)}")
    return settings.of


def _load_ensemble(settings: ensemble.Settings, config: Any, mesh: Any) -> Verdicts:
    """The ensemble where it judges by itself: all of its judges are in memory together."""
    found = [load(name, config, mesh) for name in _members(settings)]

    def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [ensemble.combine(verdicts, settings.rule) for verdicts in zip(*(one(exchanges) for one in found))]

    return judge


def _identity_of_ensemble(settings: ensemble.Settings, config: Any) -> dict[str, Any]:
    return dataclasses.asdict(settings) | {"judges": {name: JUDGES[name].fingerprint(config) for name in _members(settings)}}


ENSEMBLE = Judge(
    name="ensemble",
    title="Several judges",
    about="The judge puts together the verdicts of the judges of judges.ensemble.of, by majority or any; where answers that they could not "
    "parse would decide, it is not parsed. It judges attacks alone.",
    load=_load_ensemble,
    settings=ensemble.Settings,
    placed=True,
    identity=_identity_of_ensemble,
    members=_members,
    harmless=False,
)
JUDGES[ENSEMBLE.name] = ENSEMBLE
