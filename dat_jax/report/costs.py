"""What a run cost: training, sampling, and each attack of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dat_jax.data.answers import Answers
from dat_jax.methods import METHODS
from dat_jax.report.wording import base, workdir_of

if TYPE_CHECKING:
    from dat_jax.report.results import Results


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
    """Operations by formula per trained method and seed: training, sampling of adversarial and of utility prompts, and their sum.

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


def of_attacks(runs: Mapping[tuple[str, int], Sequence[Answers]]) -> list[dict[str, Any]]:
    """What making and answering each attack's attempts cost; files that do not say so are left out."""
    return [
        {"method": method, "attack": found.about["attack"], "seed": seed, "behaviors": len(found.done), **found.about["cost"]}
        for (method, seed), answers in runs.items()
        for found in answers
        if "attack" in found.about and found.about.get("cost")
    ]
