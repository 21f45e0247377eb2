"""Utility prompts: drawn for the benign answers of the chats, kept where the target answers them consistently; for every method."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from dat_jax import judges, sharding
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim
from dat_jax.data import conversations, manifest, provenance
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import RECORDS, PromptRecord, write_records
from dat_jax.diffusion import pool
from dat_jax.diffusion.utility import SampledUtility, benign_answers
from dat_jax.judges.judge import Exchange
from dat_jax.models import flops
from dat_jax.models.flops import Pass
from dat_jax.models.huggingface import Model
from dat_jax.settings import read
from dat_jax.stations.inputs import Inputs
from dat_jax.world import census, grammar

REMEDY = "put it back as it was, or delete both to ask the target again"  # of its own answers


def samples_of(inputs: Inputs, sampler: Model, folder: epath.Path, round: int) -> tuple[list[PromptRecord], dict[str, float]]:
    """Returns the prompts for the benign answers as they are drawn, with their cost; what is drawn stays."""
    settings = read(SampledUtility, inputs.config.utility)
    drawn_as = pool.unselected(read(pool.Pool, inputs.config.sampler), settings.samples)
    answers = benign_answers(inputs.chats, settings.answers)
    return pool.draw_all(drawn_as, answers, sampler, folder, inputs.seed, round, logging.info, "utility prompts")


def draw_utility(inputs: Inputs, sampler: Model, target: Model, folder: epath.Path, round: int, mesh) -> list[PromptRecord]:
    """Returns prompts for the benign answers of the chats, those marked as selected that the target answers consistently.

    A record's `compliance` says whether the prompt is consistent (or, for keep="likelihood", how likely the answer is, in nats per token).
    Raises ValueError where no prompt is.
    """
    config, settings = inputs.config, read(SampledUtility, inputs.config.utility)
    behaviors = benign_answers(inputs.chats, settings.answers)
    drawn, cost = samples_of(inputs, sampler, folder, round)
    started, victim = time.monotonic(), Victim(target, inputs.decoding, inputs.seed, mesh)
    fits = within(target, [record.prompt for record in drawn], config)
    of = {(drawn[i].prompt, drawn[i].response): drawn[i] for i in fits}
    attempts = [Attempt(record.behavior_id, record.prompt, record.response) for record in of.values()]
    answers = asked(victim, attempts, folder / "own_answers.jsonl") if settings.asks else [""] * len(attempts)
    scores = dict(zip(of, consistency(inputs, settings, victim, attempts, answers)))
    own, seen, records = dict(zip(of, answers)), set(), []
    for record in drawn:
        key = (record.prompt, record.response)
        kept = key in scores and key not in seen and scores[key] >= (settings.threshold if settings.keep == "likelihood" else 1.0)
        seen |= {key} if kept else set()
        response = own[key] if kept and settings.response == "own" else record.response
        records.append(dataclasses.replace(record, response=response, compliance=scores.get(key, 0.0), selected=kept))
    beside = said(inputs, folder, behaviors, records, len(of))
    cost |= {"judging_seconds": time.monotonic() - started, **asking_cost(target, inputs, len(attempts))}
    pool.write_pool(folder, records, cost, beside)
    return records


def consistency(
    inputs: Inputs, settings: SampledUtility, victim: Victim, attempts: Sequence[Attempt], answers: Sequence[str]
) -> list[float]:
    """How far the target's answer to each sampled prompt is the answer that it was drawn for: 1 or 0, or nats per token."""
    if settings.keep == "likelihood":
        return victim.log_likelihood(attempts)
    if settings.keep == "agree":
        return [float(answer.split() == attempt.target.split()) for attempt, answer in zip(attempts, answers)]
    if settings.keep == "judge":
        judge = judges.load(judges.fallback([inputs.config.sampler.judge or inputs.headline, inputs.harmless_judge]), inputs.config)
        verdicts = judge([Exchange(a.behavior, "", a.prompt, "", answer) for a, answer in zip(attempts, answers)])
        return [float(verdict.label == "comply") for verdict in verdicts]
    return [1.0] * len(attempts)


def asked(victim: Victim, attempts: Sequence[Attempt], path: epath.Path, name: str = "utility prompts") -> list[str]:
    """The target's own answers, saved after every few batches, so that an interrupted call goes on; every process must call.

    name: of the prompts, in lines of progress.

    Raises ValueError where what was saved was damaged, answers other prompts or was decoded otherwise.
    """
    marker, answers = path.parent / f"{path.stem}.json", []
    about = {"prompts": manifest.of_json([attempt.prompt for attempt in attempts]), "decoding": victim.decoding.recorded()}
    if sharding.agreed(manifest.whole(marker, path.name)):
        found = manifest.load(marker, REMEDY)
        # An earlier version did not note the decoding.
        provenance.compare(marker, found.content, {key: about[key] for key in about if key in found.content}, REMEDY)
        answers = [row["answer"] for row in found.rows(path.name, ("answer",), REMEDY)]
    size = 16 * victim.decoding.batch_size
    for start in range(len(answers), len(attempts), size):
        answers += victim.answer(attempts[start : start + size])
        if jax.process_index() == 0:
            entry = manifest.write_rows(path, ({"answer": answer} for answer in answers), grows=True)
            manifest.write(marker, about, {path.name: entry})
        logging.info("%s: %d of %d answered by the target", name, len(answers), len(attempts))
    return answers


def asking_cost(target: Model, inputs: Inputs, prompts: int) -> dict[str, float]:
    """The operations of asking the target once per prompt, by formula."""
    how = inputs.decoding
    return {"asking_flops": flops.generate(target.config, prompts, how.prompt_length, how.max_new_tokens)}


def reading_cost(target: Model, inputs: Inputs) -> float:
    """The operations of asking the target once how likely a response is, by formula."""
    how = inputs.decoding
    return flops.forward(target.config, Pass(1, 2 * how.prompt_length + how.response_length, how.response_length))


def within(target: Model, prompts: Sequence[str], config) -> list[int]:
    """Returns which prompts have text and fit the target's prompt block, and says how many do not."""

    def length(prompt: str) -> int:
        return conversations.prompt_tokens(target.tokenizer, [{"role": "user", "content": prompt}], config.data.system)

    lengths = {prompt: length(prompt) for prompt in dict.fromkeys(prompt for prompt in prompts if prompt)}
    fits = [i for i, prompt in enumerate(prompts) if prompt and lengths[prompt] <= config.data.prompt_length]
    if long := sum(map(bool, prompts)) - len(fits):
        logging.warning("sample: %d of %d prompts are too long for the target", long, len(prompts))
    return fits


def said(
    inputs: Inputs, folder: epath.Path, behaviors: Sequence[Behavior], records: list[PromptRecord], distinct: int
) -> dict[str, dict[str, Any]]:
    """Says how many prompts were drawn, were consistent and are trained on, and returns it for the files that stand beside them.

    Raises ValueError where none is consistent; the records are there to be looked at, and the pool is not complete.
    """
    kept = [record for record in records if record.selected]
    without = len(behaviors) - len({record.behavior_id for record in kept})
    counts = {"answers": len(behaviors), "drawn": len(records), "different": distinct, "kept": len(kept), "answers_without_prompt": without}
    if not kept:
        if jax.process_index() == 0:
            write_records(folder / RECORDS, records)
        raise ValueError(
            f"config.utility.keep is {inputs.config.utility.keep!r}, and none of {len(records)} prompts for {len(behaviors)} benign "
            f"answers is consistent; allowed: at least one; see {folder}/prompts.jsonl"
        )
    if without:
        logging.warning("utility prompts, seed %d: %d of %d answers got no consistent prompt", inputs.seed, without, len(behaviors))
    numbers = (inputs.seed, len(records), len(behaviors), distinct, len(kept))
    logging.info("utility prompts, seed %d: %d drawn for %d answers, %d different, %d kept", *numbers)
    beside: dict[str, dict[str, Any]] = {"counts.json": counts}
    if inputs.config.world.enabled:
        requests = {behavior.id: "_".join((grammar.parse(behavior.text) or ("", ""))[:2]) for behavior in behaviors}
        counted = census.census([dataclasses.replace(record, behavior_id=requests[record.behavior_id]) for record in records])
        beside["census.json"] = counted | {"sentence": census.sentence(counted)}
        logging.info("utility prompts, seed %d: %s", inputs.seed, census.sentence(counted))
    return beside
