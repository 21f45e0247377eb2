"""Training: every method of the configuration, each from the same target."""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from dat_jax import judges, sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Victim
from dat_jax.data import manifest, pipeline, utility
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord, read_pool
from dat_jax.data.rewrites import forms
from dat_jax.diffusion import pool
from dat_jax.judges.judge import Exchange, Verdicts
from dat_jax.methods.method import Method
from dat_jax.models import lora as lora_lib
from dat_jax.models.huggingface import Model
from dat_jax.report.progress import steps_file
from dat_jax.stations import adapting, sample, sample_utility
from dat_jax.stations.inputs import Inputs, load_model
from dat_jax.stations.subjects import load_target
from dat_jax.training import loop
from dat_jax.training.best import BROKEN
from dat_jax.training.watching import Watch


def run(inputs: Inputs, mesh) -> None:
    """Trains every method that trains; what is finished stays."""
    config = inputs.config
    trained = [method for method in inputs.methods if method.trains]
    ends = {method.name: inputs.folder / method.name / loop.FINISHED for method in trained}
    todo = [method for method in trained if not ends[method.name].exists()]
    for method in trained:
        if method not in todo:
            manifest.load(ends[method.name], "put it back as it was, or delete it to train on from the last checkpoint")
    if not trained:
        return
    if not todo:
        logging.info("train, seed %d: done", inputs.seed)
        return
    conversations = [*inputs.chats, *sampled_chats(inputs)]
    for method in todo:
        if method.prompts == "sampled":
            check_sampled(inputs)
    target = load_target(config, mesh)
    chats = pipeline.utility_rows(target.tokenizer, conversations, config.data)
    own = {method.name: budgeted(config, method, target) for method in trained}
    if config.training.flops and jax.process_index() == 0:
        for name, planned in own.items():
            manifest.write(steps_file(inputs.folder, name), {"steps": planned.training.steps})
    # Before the first training: a target that refuses nothing is an error.
    refusing = own_refusals(inputs, target, mesh) if any(method.refusals == "own" for method in todo) else []
    for method in todo:
        refresh = config.sampler.refresh_every if method.prompts == "sampled" else 0
        measured, folder = watch(inputs, target, mesh), inputs.folder / method.name
        rows = rows_of(inputs, method, refusing if method.refusals == "own" else inputs.behaviors, target, mesh)
        needed = sum(method.step_flops(target.config, config).values())
        asking = sample_utility.asking_cost(target, inputs, len(inputs.behaviors))["asking_flops"] if method.refusals == "own" else 0.0
        loop.train(method, target, rows, chats, own[method.name], inputs.seed, folder, mesh, measured, refresh, needed, asking)


def budgeted(config: ConfigDict, method: Method, target: Model) -> ConfigDict:
    """Returns the configuration with the steps that a method takes: those of config.training, or what config.training.flops pays for."""
    own = config.copy_and_resolve_references()  # a plain copy would share the groups
    own.training.steps = method.steps(target.config, config)
    if own.training.steps != config.training.steps:
        logging.info("%s: %d steps of the %.3g operations that config.training.flops gives it", method.name, own.training.steps,
                     config.training.flops)  # fmt: skip
    return own


def sampled_chats(inputs: Inputs) -> list[list[dict[str, str]]]:
    """Returns the prompts that were sampled for benign answers, as chats; [] where config.utility asks for none."""
    if not inputs.config.utility.samples:
        return []
    path = inputs.folder / "utility_prompts" / "prompts.jsonl"
    if not path.exists():
        raise ValueError(f"{path}: no utility prompts were sampled yet; run --mode=sample first")
    records = [record for record in read_pool(path.parent) if record.selected]
    return [[{"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.response}] for r in records]


def check_sampled(inputs: Inputs) -> None:
    """Raises ValueError where the prompts of the methods that train on samples were not drawn."""
    path = inputs.folder / "prompts" / "prompts.jsonl"
    if not path.exists():
        raise ValueError(f"{path}: no prompts were sampled yet; run --mode=sample first")


def rows_of(inputs: Inputs, method: Method, behaviors: Sequence[Behavior], target: Model, mesh) -> loop.RowsOfRound:
    """Returns what a method trains on: requests, these and rewrites, or selected samples, drawn anew for each round's model."""
    config, offline = inputs.config, inputs.folder / "prompts"
    share = method.share(method.read_settings(config))

    def sampler() -> Model:  # read anew for each round: between two it would lie beside the training for hours
        return load_model(config.sampler, mesh)

    def sampled(round: int, params, lora) -> list[PromptRecord]:
        if round == 0:
            check_sampled(inputs)
            return read_pool(offline)
        current, folder = loop.merged(target, params, lora), offline / f"round_{round}"
        before = offline / f"round_{round - 1}" if round > 1 else offline
        drawing = adapting.of_round(inputs, sampler, current, before, folder, round, mesh)
        if not pool.complete(folder):
            sample.samples_of(inputs, drawing, folder, round)
        drawing = sample.without_layers(drawing)  # its work is done: the target judges alone
        return sample.draw_pool(inputs, drawing, current, folder, round, mesh, target)

    def rows(round: int, params, lora) -> pipeline.AdversarialRows:
        if method.prompts == "requests":
            return pipeline.adversarial_rows(target.tokenizer, pipeline.triples(behaviors, None, inputs.seed), config.data)
        if method.prompts == "rewrites":
            chosen = pipeline.triples(behaviors, None, inputs.seed, rewrites=inputs.train_rewrites, share=share)
        else:
            drawn, requests = sampled(round, params, lora), config.sampler.add_requests
            chosen = pipeline.triples(behaviors, drawn, inputs.seed, requests, request_share=config.sampler.request_share)
        return pipeline.adversarial_rows(target.tokenizer, pipeline.within_block(target.tokenizer, chosen, config.data), config.data)

    return rows


def own_refusals(inputs: Inputs, target: Model, mesh) -> list[Behavior]:
    """Returns the behaviors with the target's own answer to the plain request as refusal, where the judge takes that for one.

    The others keep the refusals that they have, and are counted. The answers are kept in own_refusals.jsonl, their labels beside it. Every
    process must call.
    ValueError naming the methods where no answer is a refusal: they would learn the given refusals alone, under another name.
    """
    attempts = [Attempt(b.id, b.text, b.targets[0]) for b in inputs.behaviors]
    victim = Victim(target, inputs.decoding, inputs.seed, mesh)
    answers = sample_utility.asked(victim, attempts, inputs.folder / "own_refusals.jsonl", "own refusals")
    exchanges = [Exchange(a.behavior, a.prompt, a.prompt, "", answer) for a, answer in zip(attempts, answers)]
    labels = _labels(inputs, exchanges)
    refused = {a.behavior: answer for a, answer, label in zip(attempts, answers, labels) if label == "refuse"}
    if not refused:
        wanted = ", ".join(method.name for method in inputs.methods if method.refusals == "own")
        raise ValueError(
            f"config.training.methods names {wanted}, which learns the target's own refusals, and {inputs.harmless_judge} takes none of "
            f"its answers to the {len(attempts)} training requests for one ({inputs.folder / 'own_refusals.jsonl'}); allowed: other "
            "methods, or a target that refuses some of them"
        )
    logging.info("own refusals: %d of %d behaviors; the others keep the given ones", len(refused), len(attempts))
    return [dataclasses.replace(b, refusals=(refused[b.id],)) if b.id in refused else b for b in inputs.behaviors]


def _labels(inputs: Inputs, exchanges: Sequence[Exchange]) -> list[str]:
    """A judge's labels of the target's own answers, which are kept: a training that goes on has the same rows, whatever the judges are."""
    path, answers = inputs.folder / "own_refusals_judged.json", manifest.of_json([exchange.response for exchange in exchanges])
    if sharding.agreed(path.exists()) and (kept := manifest.read(path))["answers"] == answers:
        return kept["labels"]
    labels = [verdict.label for verdict in judges.load(inputs.harmless_judge, inputs.config)(exchanges)]
    if jax.process_index() == 0:
        manifest.write(path, {"answers": answers, "judge": inputs.harmless_judge, "labels": labels})
    return labels


def watch(inputs: Inputs, target: Model, mesh) -> Watch:
    """Returns the measurement made during training.

    It is the share of benign and borderline prompts that the model refuses or answers and, with config.training.watch_attacks, the share
    of the watched behaviors that each of these attacks breaks, and that any does.
    """
    judge = judges.load(inputs.harmless_judge, inputs.config)
    count = inputs.config.training.watch_prompts
    attempts = {
        name: [Attempt(p.id, p.prompt, p.response) for p in utility.spread(inputs.utility_sets[name], count)]
        for name in ("benign", "borderline")
        if inputs.utility_sets.get(name)
    }

    @functools.cache
    def headline() -> Verdicts:  # loaded with the first measurement, and kept: it may be a model
        return judges.load(inputs.headline, inputs.config, mesh)

    def measure(params, lora) -> dict[str, float]:
        model = dataclasses.replace(target, params=lora_lib.merge(params, lora))
        rates = broken(inputs, model, headline(), mesh) if inputs.watched else {}
        for name, asked in attempts.items():
            labels = sample.ask(inputs, model, asked, [""] * len(asked), judge, mesh)
            rates[f"watch/{name}_refused"] = labels.count("refuse") / len(labels)
            rates[f"watch/{name}_answered"] = labels.count("comply") / len(labels)
        return rates

    return measure


def broken(inputs: Inputs, model: Model, judge: Verdicts, mesh) -> dict[str, float]:
    """Returns the shares of the watched behaviors that the model complies with: under any attack, and under each in all its variants.

    An attack's share is of the behaviors that it has attempts on. Every process must call.
    """
    rewrites, texts = inputs.watched_rewrites, {behavior.id: behavior.text for behavior in inputs.watched}
    victim = Victim(model, inputs.decoding, inputs.seed, mesh)
    obeyed: dict[str, set[str]] = {}
    rates: dict[str, float] = {}
    for attack in map(ATTACKS.__getitem__, inputs.config.training.watch_attacks):
        tried, found = set[str](), obeyed.setdefault(attack.name, set())
        settings = attack.read_settings(inputs.config)
        for variant in attack.variants(settings, forms(rewrites)):
            context = Context(
                seed=inputs.seed,
                settings=settings,
                variant=variant,
                rewrites=[rewrite for rewrite in rewrites if rewrite.form == variant],
                judge=judge if attack.uses_judge else None,
                spent=victim.spent,
            )
            attempts = attack.attempts(list(inputs.watched), victim, context)
            labels = sample.ask(inputs, model, attempts, [texts[attempt.behavior] for attempt in attempts], judge, mesh, attack.raises)
            tried |= {attempt.behavior for attempt in attempts}
            found |= {attempt.behavior for attempt, label in zip(attempts, labels) if label == "comply"}
        rates[f"{BROKEN}:{attack.name}"] = len(found) / max(len(tried), 1)
    return {BROKEN: len(set().union(*obeyed.values())) / len(texts), **rates}
