"""Every method on the embedded world, with equal steps, rows, seeds and utility data: who holds against what, with which refusals and cost?

    python -m dat_jax.main --config=configs/league.py --workdir=runs/league                                    # seed 0
    python -m dat_jax.main --config=configs/league.py --workdir=runs/league5 --config.seeds=21,22,23,24,25     # with intervals over seeds
    python -m dat_jax.main --config=configs/league.py --workdir=runs/two --config.training.methods=undefended,cat,dat_lat    # some of them

All settings but those of a method's own are the quickstart's. Methods with an inner maximisation have its perturbation, the latent ones at
the embeddings and before the third layer. They follow it: --config.methods.cat.perturbation.steps=8 changes all of them, and
--config.methods.mixat.perturbation.steps=8 that one alone. The weight of the utility loss follows in the same way, for curves over refusals
(docs/reading_the_report.md). Refusal tuning and circuit breakers have none: methods.refusal_sft.refusal_weight raises the refusals, and a
longer methods.circuit_breakers.schedule keeps less of what is benign. R2D2 searches suffixes of four tokens: the published numbers are 80
times as many candidates.

Sampled utility is on for all, as in the quickstart. Without it:

    python -m dat_jax.main --config=configs/league.py --workdir=runs/league_plain --config.utility.samples=0

Equal steps are not equal operations. With `training.flops` every method takes the steps that this budget pays for, by formula and without
the sampling of prompts. 3.8e12 is what the 300 steps of CAT take:

    python -m dat_jax.main --config=configs/league.py --workdir=runs/league_flops --config.training.flops=3.8e12
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from dat_jax.methods import METHODS


def follow(group, other, name):
    """Ties a setting, or all settings of a group within it, to another group's: a change there is a change here, and not the other way."""
    if isinstance(other[name], ConfigDict):
        for inside in other[name]:
            follow(group[name], other[name], inside)
    else:
        group[name] = other.get_oneway_ref(name)


def get_config():
    """Returns the league's configuration."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))["get_config"]()
    c.training.methods = tuple(METHODS)
    cat = c.methods.cat
    for name in ("mixat", "self_consistency"):
        for group in ("perturbation", "perturbed", "held", "holding"):
            follow(c.methods[name], cat, group)
    follow(c.methods.mixat, cat, "objective")
    follow(c.methods.capo, cat, "perturbation")
    c.methods.capo.away_cutoff = 2.0
    follow(c.methods.lat, cat, "perturbation")
    # The reference's radius is absolute and belongs to Llama-2; its optimizer is kept out for the same reason.
    c.methods.lat.perturbation.update({"absolute_radius": False, "sites": (0, 2)})
    c.methods.lat.objective.update({"away_weight": 1.0, "toward_weight": 1.0})
    c.methods.lat.updates = 1  # as all others; the reference's 4 are 4 times the updates
    c.methods.circuit_breakers.layers = (2, 3)
    c.methods.r2d2.update({"tokens": 4, "steps": 2, "candidates": 16, "batch_size": 16, "topk": 32})
    c.methods.r2d2.objective.update({"away_weight": 1.0, "toward_weight": 1.0})
    for group in ("lat", "r2d2", "self_consistency"):
        follow(c.methods[group].objective, cat.objective, "utility_weight")
    for group in ("capo", "derta"):
        follow(c.methods[group], cat.objective, "utility_weight")
    return c
