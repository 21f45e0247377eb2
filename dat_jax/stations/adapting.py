"""Re-sampled rounds with an adapted sampler: the current model is asked the last round's prompts, and the sampler learns what broke it."""

import dataclasses
import logging
import time
from collections.abc import Callable

from etils import epath

from dat_jax.data import manifest
from dat_jax.data.prompts import read_pool
from dat_jax.diffusion import preference
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Preference
from dat_jax.models.huggingface import Model
from dat_jax.settings import read
from dat_jax.stations import sample, sample_utility
from dat_jax.stations.inputs import Inputs


def of_round(
    inputs: Inputs, sampler: Callable[[], Model], target: Model, before: epath.Path, folder: epath.Path, round: int, mesh
) -> Model:
    """Returns the sampler that draws a round: as it was loaded, or with the factors that it got from the round before.

    before: the last round's pool. folder: this round's; the pairs, the factors and their cost are kept below it, so that a killed call goes
    on with the same sampler. Every process must call.
    """
    settings = read(Preference, inputs.config.sampler.preference)
    if not settings.steps:
        return sampler()
    records, home = read_pool(before), folder / preference.FOLDER
    made_with = {"preference": dataclasses.asdict(settings), "seed": inputs.seed, "round": round}
    made_with["prompts"] = manifest.of_json([[record.behavior_id, record.response, record.prompt] for record in records])
    there, factors = preference.read(home, made_with)
    if there:
        return preference.adapted(sampler(), factors)
    started, name = time.monotonic(), f"sample, seed {inputs.seed}, round {round}"
    once = {(record.behavior_id, record.prompt): record for record in records}
    of = {behavior.id: behavior for behavior in inputs.behaviors}
    columns = zip(*((of[record.behavior_id], record.prompt, record.response) for record in once.values()))
    broke = dict(zip(once, map(bool, sample.compliance_of(inputs, target, mesh)(*columns))))
    tried = [(r.behavior_id, r.response, r.prompt, broke[r.behavior_id, r.prompt]) for r in records]
    pairs = preference.pairs_of(tried, settings.pairs, inputs.seed, round)
    behaviors = len({pair.behavior_id for pair in pairs})
    logging.info("%s: %d of %d prompts of the round before break the model; %d pairs of %d behaviors", name, sum(broke.values()),
                 len(broke), len(pairs), behaviors)  # fmt: skip
    pool, model = read(Pool, inputs.config.sampler), sampler()
    factors = preference.adapt(pool, model, pairs, settings, (inputs.seed, round), logging.info)
    if factors is None:
        logging.warning("%s: the sampler stays as it is: no behavior has prompts of both kinds", name)
    spent = sample_utility.asking_cost(target, inputs, len(once))["asking_flops"]
    spent += preference.operations(pool, model, settings) if factors is not None else 0.0
    cost = {"adapting_flops": spent, "adapting_seconds": time.monotonic() - started, "adapting_pairs": float(len(pairs))}
    preference.write(home, made_with, pairs, factors, cost)
    return preference.adapted(model, factors)
