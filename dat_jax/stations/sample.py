"""Prompts: draws, judges and selects the pool x ~ p(x | y) of the training behaviors, before training and again during it."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from dat_jax import judges
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.prefill import continued
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.data.openings import announced
from dat_jax.data.prompts import PromptRecord
from dat_jax.diffusion import pool, preference, selection
from dat_jax.judges.judge import Exchange, Verdicts
from dat_jax.models.huggingface import Model
from dat_jax.settings import read
from dat_jax.stations import sample_utility
from dat_jax.stations.inputs import Inputs, load_model
from dat_jax.stations.subjects import load_target
from dat_jax.world import census

UNREAD = -1e3  # nats per token: the standing of a prompt that the target cannot be given


def run(inputs: Inputs, mesh) -> None:
    """Draws what the methods train on against the undefended target: adversarial prompts, and prompts for benign answers."""
    trained, sampled = any(method.trains for method in inputs.methods), any(method.prompts == "sampled" for method in inputs.methods)
    utility, judged = inputs.config.utility.samples and trained, needs_target(inputs.config.sampler)
    todo: list[tuple[epath.Path, Callable[..., Any], Callable[..., Any], bool]] = [
        (inputs.folder / name, draw, choose, asks)
        for name, draw, choose, asks, wanted in (
            ("prompts", samples_of, draw_pool, judged, sampled),
            ("utility_prompts", sample_utility.samples_of, sample_utility.draw_utility, True, utility),
        )
        if wanted and not pool.complete(inputs.folder / name)
    ]
    if not todo:
        if trained:
            logging.info("sample, seed %d: done", inputs.seed)
        return
    sampler = load_model(inputs.config.sampler, mesh)
    for folder, draw, *_ in todo:
        draw(inputs, sampler, folder, 0)
    sampler = without_layers(sampler)  # all is drawn and saved; they leave the memory before the target comes into it
    target = load_target(inputs.config, mesh) if any(asks for *_, asks in todo) else None
    for folder, _, choose, _ in todo:
        choose(inputs, sampler, target, folder, 0, mesh)


def without_layers(sampler: Model) -> Model:
    """Returns what of a sampler a pool is recognised by when all of it is drawn."""
    return dataclasses.replace(sampler, params={"embedding": sampler.params["embedding"]})


def samples_of(inputs: Inputs, sampler: Model, folder: epath.Path, round: int) -> tuple[list[PromptRecord], dict[str, float]]:
    """Returns the prompts of the pool of a round as they are drawn, not judged and not selected, with their cost; what is drawn stays."""
    return pool.draw_all(read(pool.Pool, inputs.config.sampler), inputs.behaviors, sampler, folder, inputs.seed, round, logging.info)


def needs_target(sampler: Any) -> bool:
    """Whether prompts are selected by what the target makes of them; `sampler` is the sub-config."""
    return sampler.selection in selection.JUDGED or bool(sampler.consistency)


def ask(
    inputs: Inputs, model: Model, attempts: Sequence[Attempt], requests: Sequence[str], judge: Verdicts, mesh, raised: bool = False
) -> list[str]:  # fmt: skip
    """Returns the judge's label of the model's answer to each attempt; `requests` are the behaviors' texts, "" for utility prompts.

    raised: the attempts were made to make their targets likely. The judge is then given what follows one that is no answer.
    """
    answers = Victim(model, inputs.decoding, inputs.seed, mesh).answer(attempts)
    if raised:
        answers = [answer[announced(answer, a.target) if a.target_eot else 0 :].strip() for a, answer in zip(attempts, answers)]
    exchanges = [Exchange(a.behavior, r, a.prompt, a.prefill, answer) for a, r, answer in zip(attempts, requests, answers)]
    return [verdict.label for verdict in judge(exchanges)]


def consistency_of(inputs: Inputs, undefended: Model, mesh) -> pool.Scores:
    """Returns a function that says by how many nats per token a response is likelier after a prompt than after the behavior's request.

    The first `config.sampler.given` words of the response are given to the target before: a refusal says nothing about what was asked.
    """
    victim = Victim(undefended, inputs.decoding, inputs.seed, mesh)

    def rest(behavior: Behavior, prompt: str, response: str) -> Attempt:
        return continued([Attempt(behavior.id, prompt, response)], inputs.config.sampler.given)[0]

    def scores(behaviors: Sequence[Behavior], prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        requests = {(b.id, response): rest(b, b.text, response) for b, response in zip(behaviors, responses)}
        expected = dict(zip(requests, victim.log_likelihood(list(requests.values()))))
        fits = sample_utility.within(undefended, prompts, inputs.config)
        found = dict(zip(fits, victim.log_likelihood([rest(behaviors[i], prompts[i], responses[i]) for i in fits])))
        return [found.get(i, UNREAD) - expected[b.id, response] for i, (b, response) in enumerate(zip(behaviors, responses))]

    return scores


def compliance_of(inputs: Inputs, model: Model, mesh) -> pool.Scores:
    """Returns a function that says whether a model complies with prompts, 1.0 or 0.0 each; with one too long to be sent it does not."""
    judge = judges.load(inputs.config.sampler.judge or inputs.headline, inputs.config, mesh)

    def compliance(behaviors: Sequence[Behavior], prompts: Sequence[str], _: Sequence[str]) -> list[float]:
        short = sample_utility.within(model, prompts, inputs.config)
        attempts = [Attempt(behaviors[i].id, prompts[i], behaviors[i].targets[0]) for i in short]
        labels = dict(zip(short, ask(inputs, model, attempts, [behaviors[i].text for i in short], judge, mesh)))
        return [float(labels.get(i) == "comply") for i in range(len(prompts))]

    return compliance


def draw_pool(
    inputs: Inputs, sampler: Model, target: Model | None, folder: epath.Path, round: int, mesh, undefended: Model | None = None
) -> list[PromptRecord]:
    """Returns the pool of a round, judged and selected against `target`; one that is complete in the folder is read.

    target: None where the selection does not need it, see `needs_target`.

    What is consistent is told by the model as it was before training: `undefended`, or where that is None the target. The pool's cost
    has what was spent on adapting the sampler, where stations/adapting.py wrote that beside it.
    """
    config = inputs.config
    asked, consistent, price = None, None, 0.0
    # Answering every sample costs more than drawing it, so the target is asked only where the selection needs to know.
    if target and config.sampler.selection in selection.JUDGED:
        asked = compliance_of(inputs, target, mesh)
        price += sample_utility.asking_cost(target, inputs, 1)["asking_flops"]
    if target and config.sampler.consistency:
        consistent = consistency_of(inputs, undefended or target, mesh)
        price += sample_utility.reading_cost(target, inputs)
    records = pool.build_pool(
        config.sampler, inputs.behaviors, sampler, asked, str(folder), inputs.seed, round, logging.info, price, consistent,
        lambda found: {"census.json": counted(found)} if config.world.enabled else {}, preference.cost_of(folder / preference.FOLDER),
    )  # fmt: skip
    selected = [r for r in records if r.selected]
    logging.info("sample, seed %d, round %d: %d of %d prompts selected", inputs.seed, round, len(selected), len(records))
    if consistent is not None:
        say_consistent(inputs, records)
    if asked is not None:
        obeyed = sum(r.compliance or 0.0 for r in selected) / max(len(selected), 1)
        logging.info("sample, seed %d: the target complies with %.0f %% of the selected prompts", inputs.seed, 100 * obeyed)
    if config.world.enabled and jax.process_index() == 0:
        logging.info("sample, seed %d: %s", inputs.seed, counted(records)["sentence"])
    return records


def counted(records: Sequence[PromptRecord]) -> dict[str, Any]:
    """The census of a pool of the embedded world, and the sentence that tells it."""
    found = census.census(records)
    return found | {"sentence": census.sentence(found)}


def say_consistent(inputs: Inputs, records: Sequence[PromptRecord]) -> None:
    """Says how many prompts ask for their response, and warns of behaviors that got none."""
    settings = read(pool.Pool, inputs.config.sampler)
    fit = [record for record in records if settings.admits(record)]
    logging.info("sample, seed %d: %d of %d prompts are consistent with their response", inputs.seed, len(fit), len(records))
    if without := {record.behavior_id for record in records} - {record.behavior_id for record in fit}:
        names = ", ".join(sorted(without)[:3])
        logging.warning("sample, seed %d: no sampled prompt is consistent for %d behaviors: %s", inputs.seed, len(without), names)
