"""What a run cost: training, sampling, and each attack of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from dat_jax.data import files
from dat_jax.data.answers import Answers, Line
from dat_jax.methods import METHODS
from dat_jax.report.wording import base, workdir_of

if TYPE_CHECKING:
    from dat_jax.report.results import Results

# Of an attack's cost: of the model under attack, of drawing prompts, of a local rewriter, and of a local judge that steers or scores it.
OPERATIONS = ("flops", "drawing_flops", "rewriter_flops", "judge_flops", "scoring_flops")


def training_costs(results: Results) -> list[dict[str, Any]]:
    """Per method and seed: steps, median tokens per second, wall seconds of the training and, where it uses them, of its sampled prompts.

    Seconds are None where no station wrote them. Prompts that several runs share are counted in full for each; those of refreshed rounds
    are drawn while the training runs, and count as both.
    """
    costs = []
    sampling = {_of(cost): _sum(cost, "seconds", "judging_seconds", "adapting_seconds") for cost in results.costs}
    for (method, seed), lines in results.metrics.items():
        speeds = sorted(line["tokens_per_second"] for line in lines if line.get("tokens_per_second"))
        speed = speeds[len(speeds) // 2] if speeds else None
        seconds = results.finished.get((method, seed), {}).get("seconds")
        prompts = sampling.get((workdir_of(method), seed)) if _samples(method) else 0.0
        cost = {"method": method, "seed": seed, "steps": lines[-1]["step"], "tokens_per_second": speed, "seconds": seconds}
        costs.append(cost | {"sampling_seconds": prompts})
    return costs


def flops(results: Results) -> list[dict[str, Any]]:
    """Operations by formula per trained method and seed: training, sampling of adversarial and of utility prompts, asking the target for
    its own refusals, and their sum.

    Sampling includes the likelihoods, asking the target and adapting the sampler. Prompts that several methods share are counted in full
    for each. A method that does not count its steps is left out.
    """
    found = []
    for (method, seed), finished in results.finished.items():
        if not finished.get("flops"):
            continue
        drawn = {_of(cost): _sum(cost, "flops", "asking_flops", "adapting_flops") for cost in results.costs}
        benign = {_of(cost): _sum(cost, "flops", "asking_flops") for cost in results.utility_costs}
        place = (workdir_of(method), seed)
        parts = {
            "training": finished["flops"],
            "sampling": drawn.get(place, 0.0) if _samples(method) else 0.0,
            "utility_sampling": benign.get(place, 0.0),
            "asking": finished.get("asking_flops") or 0.0,
        }
        found.append({"method": method, "seed": seed, **parts, "total": sum(parts.values())})
    return found


def _sum(cost: Mapping[str, Any], *names: str) -> float:
    """The entries of a cost that are there, together."""
    return sum(cost.get(name, 0.0) for name in names)


def _of(cost: Mapping[str, Any]) -> tuple[str, int]:
    """Whose prompts a cost is of: the workdir that a comparison names, and the seed."""
    return cost.get("workdir", ""), cost["seed"]


def _samples(method: str) -> bool:
    return base(method) in METHODS and METHODS[base(method)].prompts == "sampled"


def of_attacks(
    judged: Mapping[tuple[str, int], Sequence[tuple[Answers, Sequence[Line]]]], folders: Mapping[tuple[str, int], epath.Path]
) -> list[dict[str, Any]]:
    """What each attack cost: making and answering its attempts, drawing and rewriting its prompts, and judging its answers.

    judged: of each run the files of answers with the lines that the first judge has judged; folders: of each run's answers. Files that do
    not say their cost are left out. `whole_flops` is the sum of all operations, `seconds` of answering and drawing.
    """
    rows = []
    for (method, seed), files_ in judged.items():
        for found, lines in files_:
            if "attack" not in found.about or not found.about.get("cost"):
                continue
            row = {"method": method, "attack": found.about["attack"], "seed": seed, "behaviors": len(found.done), **found.about["cost"]}
            drawn = _drawing(folders[method, seed].parent.parent / "infilling") if found.about["attack"] == "infilling" else {}
            row |= {f"drawing_{kind}": per_behavior * len(found.done) for kind, per_behavior in drawn.items()}
            row["seconds"] += row.get("drawing_seconds", 0.0)
            # A local judge reads the request and the answer: equal answers to one behavior are judged once.
            once = {(line["behavior"], line["response"]): line["flops"] for line in lines if "flops" in line}
            row |= {"scoring_flops": sum(once.values())} if once else {}
            rows.append(row | {"whole_flops": sum(row.get(kind, 0.0) for kind in OPERATIONS)})
    return rows


def _drawing(folder: epath.Path) -> dict[str, float]:
    """Operations and seconds per behavior of what the sampler drew for the attack; {} where it drew nothing."""
    if not (folder / "cost.json").exists():
        return {}
    cost, settings = (files.read_json(str(folder / name)) for name in ("cost.json", "made_with.json"))
    files.require_keys(str(folder / "cost.json"), 1, list(cost), ["flops", "seconds", "samples"], "key")
    return {kind: cost[kind] * settings["samples"] / cost["samples"] for kind in ("flops", "seconds")}
