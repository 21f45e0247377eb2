"""One report over several finished workdirs: their models side by side, named by workdir, where a comparison is fair.

Answers are compared on the same behaviors and by the same judge alone; anything else is an error. An attack that was made with other
settings is shown, and neither it nor a worst case that counts it is compared.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest, provenance
from dat_jax.data.answers import Answers
from dat_jax.report import costs, judging
from dat_jax.report import results as results_lib
from dat_jax.report.results import Results
from dat_jax.report.wording import WORST, base, label, workdir_of, worst_cases
from dat_jax.settings import dotted

Rates = tuple[float, float, float]  # rate, low, high
KEY = "config.report.compare"
# Keys of a configuration that are not settings of what was trained: where and on which seeds it ran, what was evaluated.
IGNORED = ("mesh.", "seeds", "evaluation.", "attacks.", "judges.", "report.", "training.methods", "training.watch", "training.save_every")
# Keys that are alike on one line of a figure: a line joins one thing under several settings of its training.
FIXED = ("target.model", "target.checkpoint", "world.", "data.behaviors", "data.eval_behaviors")


def named(workdir: epath.PathLike, others: Sequence[str]) -> dict[str, epath.Path]:
    """Name -> workdir, the report's own first. others: workdirs, NAME=FOLDER where the folder's name does not tell enough.

    Raises ValueError naming a workdir that is not there, or a name that two of them have.
    """
    pairs = [("", str(workdir)), *(_split(entry) for entry in others)]
    for _, place in pairs[1:]:
        if not epath.Path(place).is_dir():
            raise ValueError(f"{KEY} names {place!r}, which is no folder; allowed: workdirs, NAME=WORKDIR gives one a name")
    parts = [[part for part in str(epath.Path(place).resolve() if "://" not in place else place).split("/") if part] for _, place in pairs]
    depth = next((k for k in range(1, max(map(len, parts)) + 1) if len({tuple(p[-k:]) for p in parts}) == len(parts)), 0)
    if not depth:
        raise ValueError(f"{KEY} names one workdir twice, or the report's own; allowed: each once")
    kept = [part[-depth:] for part in parts]
    while all(len(part) > 1 for part in kept) and len({part[-1] for part in kept}) == 1 and len(kept) > 1:
        kept = [part[:-1] for part in kept]  # base/s0 and half/s0 are called base and half
    names = [name or answers_lib.short_name("-".join(part)) for (name, _), part in zip(pairs, kept)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{KEY}: two workdirs are called {repeated[0]!r}; allowed: different names, NAME=WORKDIR gives one its own")
    return {name: epath.Path(place) for name, (_, place) in zip(names, pairs)}


def _split(entry: str) -> tuple[str, str]:
    name, _, place = entry.rpartition("=")
    return (answers_lib.short_name(name) if name else ""), place


def runs(places: Mapping[str, epath.Path], order: Sequence[str]) -> dict[tuple[str, int], epath.Path]:
    """(WORKDIR/model, seed) -> folder of its answers; a model that an earlier workdir has, with the same answers, stands there alone."""
    found: dict[tuple[str, int], epath.Path] = {}
    seen: set[str] = set()
    for name, workdir in places.items():
        own = results_lib.runs_of(workdir, order)
        if not own:
            raise ValueError(
                f"{workdir}: nothing was evaluated there (no seed_<s>/answers/<model>/<attack>.jsonl); run --mode=evaluate first"
            )
        for model in dict.fromkeys(model for model, _ in own):
            mine = {seed: folder for (of, seed), folder in own.items() if of == model}
            content = [[seed, [[a.about.get("attack"), a.lines] for a in answers_lib.read_all(folder)]] for seed, folder in mine.items()]
            if (checksum := manifest.of_json(content)) not in seen:
                seen.add(checksum)
                found |= {(f"{name}/{model}", seed): folder for seed, folder in mine.items()}
    return found


def check(places: Mapping[str, epath.Path], found: Mapping[tuple[str, int], epath.Path], order: Sequence[str]) -> dict[str, str]:
    """Returns the attacks that are not comparable -> why.

    Raises ValueError where the workdirs were judged by other judges, or asked about other behaviors or harmless prompts.
    """
    first, *others = places
    _check_judges(places, found, order)
    unlike: dict[str, str] = {}
    mine = _asked(first, found)
    for other in others:
        theirs = _asked(other, found)
        seeds = sorted({seed for seed, _ in mine} & {seed for seed, _ in theirs})
        if not seeds:  # other seeds ask about the same behaviors, but in the embedded world
            mine_at, theirs_at = min(seed for seed, _ in mine), min(seed for seed, _ in theirs)
            pairs = [(mine_at, theirs_at)]
        else:
            pairs = [(seed, seed) for seed in seeds]
        for here, there in pairs:
            left, right = ({name: a for (seed, name), a in of.items() if seed == at} for of, at in ((mine, here), (theirs, there)))
            unlike |= _unlike(first, other, str(places[other]), left, right)
    return unlike


def _check_judges(places: Mapping[str, epath.Path], found: Mapping[tuple[str, int], epath.Path], order: Sequence[str]) -> None:
    seeds: dict[str, list[epath.Path]] = {name: [] for name in places}
    for (method, _), folder in found.items():
        seeds[workdir_of(method)].append(results_lib.seed_folder(folder))
    first, *others = places
    own = judging.present([seeds[first]], order)
    if not own:
        raise ValueError(f"{places[first]}: the answers there were not judged (no seed_<s>/verdicts/<judge>/); run --mode=judge first")

    def known(name: str) -> list[Any]:
        paths = [folder / "verdicts" / answers_lib.file_name(own[0]) / "judge.json" for folder in dict.fromkeys(seeds[name])]
        return [manifest.load(path, "delete that folder to judge again").content for path in paths if path.exists()]

    for other in others:
        if seeds[other] and not known(other):
            raise ValueError(
                f"{KEY} names {str(places[other])!r}, whose answers {own[0]} did not judge, the first judge of {places[first]}; "
                f"run --mode=judge --config.evaluation.judges={own[0]} there"
            )
        if differ := next((content for content in known(other) if content != known(first)[0]), None):
            provenance.compare(
                f"{KEY} names {str(places[other])!r}, where the judge {own[0]}", differ, known(first)[0], "judge one of them again",
                name="judge.",
            )  # fmt: skip


def _asked(name: str, found: Mapping[tuple[str, int], epath.Path]) -> dict[tuple[int, str], Answers]:
    """(seed, attack or "utility SET") -> answers of one of a workdir's models: all of them were asked the same."""
    asked: dict[tuple[int, str], Answers] = {}
    for (method, seed), folder in found.items():
        if workdir_of(method) == name:
            for one in answers_lib.read_all(folder):
                asked.setdefault((seed, one.about["attack"] if "attack" in one.about else f"utility {one.about.get('set')}"), one)
    return asked


def _unlike(first: str, other: str, place: str, mine: Mapping[str, Answers], theirs: Mapping[str, Answers]) -> dict[str, str]:
    """The attacks of two workdirs, of one seed, that are not comparable -> why; ValueError where nothing is."""

    def ids(of: Mapping[str, Answers]) -> set[str]:
        return {id for name, a in of.items() if not name.startswith("utility ") for id in a.about.get("asked", a.done)}

    if mine and theirs and (differ := sorted(ids(mine) ^ ids(theirs))):
        raise ValueError(
            f"{KEY} names {place!r}, where other behaviors were attacked: {', '.join(differ[:3])} here or there alone; "
            "allowed: a workdir with the same data.eval_behaviors, evaluation.behaviors and, in the embedded world, seeds"
        )
    found, reworded = {}, []
    for name in [name for name in mine if name in theirs]:
        one, two = mine[name], theirs[name]
        shared = one.done.keys() & two.done.keys()
        other_words = any(one.done[id] != two.done[id] for id in shared)
        asked_of = set(one.about.get("asked", one.done)) ^ set(two.about.get("asked", two.done))
        if name.startswith("utility "):
            if other_words or asked_of:
                raise ValueError(
                    f"{KEY} names {place!r}, where other {name.removeprefix('utility ')} prompts were asked; allowed: a workdir with the "
                    "same data.benign, data.borderline and evaluation.utility_prompts"
                )
            continue
        settings, other_settings = (_settings(a.about.get("made_with", {})) for a in (one, two))
        key = next((key for key in {**settings, **other_settings} if settings.get(key) != other_settings.get(key)), "")
        if asked_of:
            found[name] = f"{first} and {other} tried it on other behaviors"
        elif key:
            found[name] = f"{key} is {settings.get(key)} in {first} and {other_settings.get(key)} in {other}"
        elif other_words:
            reworded.append(name)
            found[name] = f"{first} and {other} gave it other prompts or targets"
    if reworded and len(reworded) == sum(not name.startswith("utility ") for name in mine if name in theirs):
        raise ValueError(
            f"{KEY} names {place!r}, where the behaviors have other texts or targets; allowed: a workdir with the same data.eval_behaviors"
        )
    return found


def _settings(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What an attack was made with, whoever was attacked."""
    return {key: value for key, value in provenance.flat(made_with).items() if key not in ("model", "seed", "attack")}


def limited(results: Results, unlike: Mapping[str, str]) -> Results:
    """The results without comparisons of what is not comparable, with notes that say so."""
    touched = set(unlike)
    for attack in unlike:
        touched |= set(worst_cases(results.surfaces.get(attack, "text")))
    notes = [
        f"{label(attack, results.held_out)} is not comparable: {why}. No worst case that counts it is compared."
        for attack, why in unlike.items()
    ]
    seeds = {name: sorted({seed for method, seed in _runs_of(results) if workdir_of(method) == name}) for name in workdirs(results)}
    if len({tuple(found) for found in seeds.values()}) > 1:
        notes.append(
            "The workdirs have other seeds: " + "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in seeds.items()) + "."
        )
    kept, tests = ([item for item in rows if item["of"] not in touched] for rows in (results.comparisons, results.paired_tests))
    absent = [note for note in results.notes if not note.endswith(", was not evaluated.")] if len(seeds) > 1 else results.notes
    return dataclasses.replace(results, comparisons=kept, paired_tests=tests, notes=notes + list(absent))


def _runs_of(results: Results) -> set[tuple[str, int]]:
    return {(row["method"], row["seed"]) for row in results.rows}


def workdirs(results: Results) -> list[str]:
    """The names of the workdirs of a comparison, in the order of its columns; [""] in the report of one."""
    return list(dict.fromkeys(workdir_of(method) for method in results.methods))


@dataclasses.dataclass(frozen=True)
class Point:
    """A model in one workdir, over its seeds."""

    method: str  # WORKDIR/NAME
    changed: str  # the keys by which its configuration differs from the first workdir's, with their values
    line: str  # points of one line are one thing under several settings
    broken: Rates  # behaviors broken by any attack
    rates: dict[str, Rates]  # measure -> rate, low, high
    flops: float | None  # per seed, sampling included; None where it was not counted


def points(results: Results, configs: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """Returns a point per model with a worst case and a measure of usefulness. configs: name -> the workdir's configuration, nested."""
    made, first = [], next(iter(configs))
    spent = costs.flops(results)
    for method in results.methods:
        rates = {measure: found for (of, measure), found in results.utility_rates.items() if of == method}
        if not rates or (method, WORST) not in results.attack_rates:
            continue
        config = configs[workdir_of(method)]
        tried = sorted(attack for of, attack in results.attack_rates if of == method)
        fixed = [(key, value) for key, value in dotted(config) if key.startswith(FIXED)]
        of_method = [row["total"] for row in spent if row["method"] == method]
        made.append(
            Point(
                method=method,
                changed="" if workdir_of(method) == first else differences(configs[first], config),
                line=f"{base(method)} {manifest.of_json([tried, fixed])}",
                broken=results.attack_rates[method, WORST],
                rates=rates,
                flops=statistics.mean(of_method) if of_method else None,
            )
        )
    return made


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The settings of training and sampling that differ, as the other one has them: "steps 400, radius 0.6"."""
    flat, theirs = dict(dotted(one)), dict(dotted(other))
    keys = [key for key in theirs if flat.get(key) != theirs[key] and not key.startswith(IGNORED)]
    return ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {theirs[key]}" for key in keys)


def curves(found: Sequence[Point], across: str) -> list[list[Point]]:
    """The points of each line in the order of `across`, a measure or "flops"; points that lack it are left out, and so is a lone point."""
    lines: dict[str, list[Point]] = {}
    for point in found:
        if at(point, across) is not None:
            lines.setdefault(point.line, []).append(point)
    return [sorted(line, key=lambda p: at(p, across) or 0.0) for line in lines.values() if len(line) > 1]


def at(point: Point, across: str) -> float | None:
    """A point's place on the axis `across`: a measure's rate, or "flops"."""
    if across == "flops":
        return point.flops
    return point.rates[across][0] if across in point.rates else None
