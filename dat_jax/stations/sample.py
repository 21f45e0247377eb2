"""Prompts: draws, judges and selects the pool x ~ p(x | y) of the training behaviors, before training and again during it."""

import functools
import json
import logging
from collections.abc import Sequence

import jax
from etils import epath

from dat_jax import judges
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim
from dat_jax.data import conversations, files
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord
from dat_jax.diffusion import pool, selection
from dat_jax.judges.judge import Exchange, Verdicts
from dat_jax.models.huggingface import Model
from dat_jax.stations import sample_utility
from dat_jax.stations.inputs import Inputs, load_model
from dat_jax.stations.subjects import load_target
from dat_jax.world import census


def run(inputs: Inputs, mesh) -> None:
    """Draws what the methods train on against the undefended target: adversarial prompts, and prompts for benign answers."""
    todo = [
        (inputs.folder / name, draw)
        for name, draw, wanted in (
            ("prompts", draw_pool, any(method.prompts == "sampled" for method in inputs.methods)),
            (
                "utility_prompts",
                sample_utility.draw_utility,
                inputs.config.utility.samples and any(method.trains for method in inputs.methods),
            ),
        )
        if wanted and not pool.complete(inputs.folder / name)
    ]
    if not todo:
        if any(method.trains for method in inputs.methods):
            logging.info("sample, seed %d: done", inputs.seed)
        return
    sampler, target = load_model(inputs.config.sampler, mesh), load_target(inputs.config, mesh)
    for folder, draw in todo:
        draw(inputs, sampler, target, folder, 0, mesh)


def ask(inputs: Inputs, model: Model, attempts: Sequence[Attempt], requests: Sequence[str], judge: Verdicts, mesh) -> list[str]:
    """Returns the judge's label of the model's answer to each attempt; `requests` are the behaviors' texts, "" for utility prompts."""
    answers = Victim(model, inputs.decoding, inputs.seed, mesh).answer(attempts)
    exchanges = [Exchange(a.behavior, r, a.prompt, a.prefill, answer) for a, r, answer in zip(attempts, requests, answers)]
    return [verdict.label for verdict in judge(exchanges)]


def draw_pool(inputs: Inputs, sampler: Model, target: Model, folder: epath.Path, round: int, mesh) -> list[PromptRecord]:
    """Returns the pool of a round, judged and selected against `target`; one that is complete in the folder is read."""
    config = inputs.config
    judge = judges.load(config.sampler.judge or inputs.headline, config)

    def compliance(behaviors: Sequence[Behavior], prompts: Sequence[str], _: Sequence[str]) -> list[float]:
        lengths = [conversations.prompt_tokens(target.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
        short = [i for i, length in enumerate(lengths) if length <= config.data.prompt_length]
        if len(short) < len(prompts):
            logging.warning("sample: %d of %d prompts are too long for the target", len(prompts) - len(short), len(prompts))
        attempts = [Attempt(behaviors[i].id, prompts[i], behaviors[i].targets[0]) for i in short]
        labels = dict(zip(short, ask(inputs, target, attempts, [behaviors[i].text for i in short], judge, mesh)))
        return [float(labels.get(i) == "comply") for i in range(len(prompts))]

    # Answering every sample costs more than drawing it, so the target is asked only where the selection needs to know.
    asked = compliance if config.sampler.selection in selection.JUDGED else None
    price = sample_utility.asking_cost(target, inputs, 1)["asking_flops"] if asked else 0.0
    records = pool.build_pool(config.sampler, inputs.behaviors, sampler, asked, str(folder), inputs.seed, round, logging.info, price)
    selected = [r for r in records if r.selected]
    logging.info("sample, seed %d, round %d: %d of %d prompts selected", inputs.seed, round, len(selected), len(records))
    if asked is not None:
        obeyed = sum(r.compliance or 0.0 for r in selected) / max(len(selected), 1)
        logging.info("sample, seed %d: the target complies with %.0f %% of the selected prompts", inputs.seed, 100 * obeyed)
    if config.world.enabled and jax.process_index() == 0:
        counted = census.census(records)
        files.write_text(folder / "census.json", json.dumps(counted | {"sentence": census.sentence(counted)}, indent=1))
        logging.info("sample, seed %d: %s", inputs.seed, census.sentence(counted))
    return records


def lazy_sampler(inputs: Inputs, mesh):
    """Returns a function that loads the sampler when it is first called, and keeps it."""
    return functools.cache(lambda: load_model(inputs.config.sampler, mesh))
