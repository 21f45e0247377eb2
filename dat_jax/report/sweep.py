"""A sweep: the same methods trained under several settings, a workdir each, as points of one curve of robustness against its price."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import manifest
from dat_jax.report.wording import WORST
from dat_jax.settings import dotted

Rates = tuple[float, float, float]  # rate, low, high
# Keys of a configuration that are not settings of what was trained: where and on which seeds it ran, what was evaluated.
IGNORED = ("mesh.", "seeds", "evaluation.", "attacks.", "judges.", "report.", "training.methods", "training.watch", "training.save_every")


@dataclasses.dataclass(frozen=True)
class Point:
    """A method in one workdir, over its seeds."""

    method: str
    workdir: str
    changed: str  # the keys by which its configuration differs from the report's own, with their values; "" for the report's own
    broken: Rates  # behaviors broken by any attack
    rates: dict[str, Rates]  # measure -> rate, low, high
    flops: float | None  # per seed, sampling included; None where it was not counted


def points(own: Mapping[str, Any], workdirs: Sequence[str]) -> list[Point]:
    """Returns a point for each method of the report's own results.json content and of every workdir of the sweep; [] without a sweep.

    Raises ValueError naming a workdir without a report, or with other attacks: a worst case grows with their number.
    """
    if not workdirs:
        return []
    found = of_results(own, "", {})
    attacks = {attack["name"] for attack in own["attacks"]}
    for workdir in workdirs:
        path = epath.Path(workdir) / "results.json"
        if not path.exists():
            raise ValueError(f"config.evaluation.sweep names {workdir!r}, which has no results.json; allowed: a workdir with a report")
        theirs = manifest.load(path, "run --mode=report there to write it again").content
        if differ := sorted(attacks ^ {attack["name"] for attack in theirs["attacks"]}):
            raise ValueError(
                f"config.evaluation.sweep names {workdir!r}, where other attacks were tried: {', '.join(differ[:3])} here or there alone; "
                "allowed: a workdir with the same attacks"
            )
        found += of_results(theirs, workdir, own["config"])
    return found


def of_results(content: Mapping[str, Any], workdir: str, base: Mapping[str, Any]) -> list[Point]:
    """Returns a point per method of a results.json that has a worst case and a measure of usefulness."""
    broken = {r["method"]: _rates(r) for r in content["over_seeds"] if r["attack"] == WORST}
    counted: dict[str, dict[str, Rates]] = {}
    for row in content["utility_over_seeds"]:
        counted.setdefault(row["method"], {})[row["measure"]] = _rates(row)
    changed = differences(base, content["config"]) if workdir else ""
    made = []
    for method in (method for method in broken if method in counted):
        costs = [row["total"] for row in content["flops"] if row["method"] == method]
        made.append(Point(method, workdir, changed, broken[method], counted[method], statistics.mean(costs) if costs else None))
    return made


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The settings of training and sampling that differ, as the other one has them: "steps 400, radius 0.6"."""
    flat, theirs = dict(dotted(base)), dict(dotted(other))
    keys = [key for key in theirs if flat.get(key) != theirs[key] and not key.startswith(IGNORED)]
    return ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {theirs[key]}" for key in keys)


def curves(found: Sequence[Point], across: str) -> dict[str, list[Point]]:
    """Method -> its points in the order of `across`, a measure or "flops"; points that lack it are left out, and so is a lone point."""
    lines: dict[str, list[Point]] = {}
    for point in found:
        if at(point, across) is not None:
            lines.setdefault(point.method, []).append(point)
    return {method: sorted(line, key=lambda p: at(p, across) or 0.0) for method, line in lines.items() if len(line) > 1}


def at(point: Point, across: str) -> float | None:
    """A point's place on the axis `across`: a measure's rate, or "flops"."""
    if across == "flops":
        return point.flops
    return point.rates[across][0] if across in point.rates else None


def _rates(row: Mapping[str, Any]) -> Rates:
    return row["rate"], row["low"], row["high"]
