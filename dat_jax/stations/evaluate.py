"""Answers: every attack and utility set against every model, one file each, saved after each batch of behaviors.

What is answered is not answered again: a call that adds an attack, behaviors or a model computes what is new. Judging is a station of its
own, so a judge may be changed or added at any time.
"""

import dataclasses
import functools
import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import judges, sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attack, Attempt, Context, Stopped
from dat_jax.attacks.victim import Victim
from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest, provenance, utility
from dat_jax.data.answers import checksum, file_name
from dat_jax.data.behaviors import Behavior
from dat_jax.data.openings import announced
from dat_jax.data.utility import UtilityPrompt
from dat_jax.diffusion.pool import Pool, unselected
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import Exchange, Verdict, Verdicts
from dat_jax.models.huggingface import Model
from dat_jax.report.progress import plan_file
from dat_jax.settings import read
from dat_jax.stations import given, measure, rewriter
from dat_jax.stations.clock import Clock
from dat_jax.stations.inputs import Inputs, load_model
from dat_jax.stations.likelihoods import taken
from dat_jax.stations.rewriter import Rewriter
from dat_jax.stations.store import FileStore, answered
from dat_jax.stations.subjects import Subject, content, load_target, subjects

Lines = Callable[[Attempt, str], answers_lib.Line]  # (attempt, response) -> the line that is kept


@dataclasses.dataclass(frozen=True)
class Job:
    """One file of answers: what is asked of one model."""

    name: str  # of the attack with its variant, or of the utility set
    file: str  # below answers/<subject>, without suffix
    about: dict[str, Any]  # made_with, title, surface
    items: dict[str, Any]  # id -> behavior or utility prompt
    checksums: dict[str, str]  # id -> of what is asked about it
    attempts: Callable[[list[Any], Victim, Any], list[Attempt]]  # (items, victim, store) -> attempts
    line: Lines
    slow: bool  # whether it costs many times what plain text does, for the time that is left
    together: bool = False  # whether all that is missing is one batch
    prepare: Callable[[list[Any]], None] = lambda items: None  # what can be done before a model is loaded
    marked: Callable[[answers_lib.Line], answers_lib.Line] = lambda line: line  # a line with what of it is judged
    waits: bool = False  # whether its attempts are answers of the same model that are not there yet
    measured: Callable[[list[Attempt], Victim], list[answers_lib.Line]] | None = None  # fields of lines, taken beside the answers
    release: Callable[[], None] = lambda: None  # drops what its attempts loaded

    def of_model(self, identity: str) -> "Job":
        """The same job, its file made with a certain model: another one under the same name is noticed before it is loaded."""
        return dataclasses.replace(self, about=self.about | {"made_with": self.about["made_with"] | {"model": identity}})


def run(inputs: Inputs, mesh) -> None:
    """Answers what is not answered yet, for every model. Every process must call; process 0 writes."""
    if not inputs.eval_behaviors:
        raise ValueError("config.data.eval_behaviors is empty; allowed: a behaviors CSV to attack the models with")
    models = subjects(inputs, mesh)
    for subject in models:
        subject.check()
    target: list[Model] = []

    def loaded_target() -> Model:
        target[:] = target or [load_target(inputs.config, mesh)]
        return target[0]

    @functools.cache
    def original() -> Model:  # before config.target.checkpoint: what held-out chats are compared with
        return load_model(inputs.config.target, mesh) if inputs.config.target.checkpoint else loaded_target()

    ready, writer, stopped = given.ready(inputs, mesh), Rewriter(inputs, mesh), dict[str, str]()
    for subject in models:
        folder = inputs.folder / "answers" / subject.name
        if "replay" in inputs.config.evaluation.attacks:
            ready["replay"] = given.of_replay(inputs, subject, [other for other in models if other is not subject])

        def planned(subject: Subject = subject) -> list[Job]:
            return [job.of_model(subject.identity) for job in plan(inputs, subject.name, ready, writer)]

        jobs = planned()
        note_plan(jobs, folder)
        todo = [(job, missing) for job in jobs if (missing := what_is_missing(job, folder))]
        measures, beside = [of.of_model(subject.identity) for of in measure.plan(inputs, subject.name)], inputs.folder / "measures"
        left = [(of, missing) for of in measures if (missing := what_is_missing(of, beside / subject.name))]
        if not todo and not left:
            logging.info("evaluate %s, seed %d: done", subject.name, inputs.seed)
            continue
        if todo:
            logging.info("evaluate %s, seed %d: %d of %d attacks and utility sets to do", subject.name, inputs.seed, len(todo), len(jobs))
        # A rewriter that need not see a model's answers is asked now: it and the model are then not in memory together.
        for job, missing in todo:
            _unless_stopped(stopped, job, job.prepare, [job.items[item] for item in missing])
        writer.release()
        model = subject.load(loaded_target)
        victim, weights = Victim(model, inputs.decoding, inputs.seed, mesh), fingerprint(model)
        clock = Clock([(job.slow, len(missing)) for job, missing in todo])
        waiting = [job.file for job, _ in todo if job.waits]
        for job, missing in todo:
            if not job.waits:
                name = f"  {subject.name}, seed {inputs.seed}, {job.name}"
                _unless_stopped(stopped, job, answer, job, missing, folder, victim, weights, clock, name)
        multihost_utils.sync_global_devices(f"answered {subject.name}")  # what waits reads on all processes what process 0 wrote
        for job in planned() if waiting else ():
            name = f"  {subject.name}, seed {inputs.seed}, {job.name}"
            if job.file in waiting and job.waits:
                logging.error("%s: left out, as the attack that it is put on was not answered", name)
            elif job.file in waiting:
                _unless_stopped(stopped, job, answer, job, what_is_missing(job, folder), folder, victim, weights, clock, name)
        writer.release()
        for of, missing in left:
            name = f"  {subject.name}, seed {inputs.seed}, {of.name}"
            measure.measure(of, missing, beside / subject.name, victim, weights, original, name)
        del model, victim  # before the next one is loaded: the target and one model beside it are to fit
    if stopped:
        raise ValueError("; ".join(stopped.values()))


def _unless_stopped(stopped: dict[str, str], job: Job, work: Callable[..., None], *arguments: Any) -> None:
    """Does a part of a job's work, unless its attack was stopped before; where it stops now, that is noted, and the others go on."""
    kind = job.name.partition(":")[0]
    if kind in stopped:
        return
    try:
        work(*arguments)
    except Stopped as error:
        stopped[kind] = f"the attack {kind!r} was stopped: {error}"
        logging.error("%s; the other attacks go on", stopped[kind])


def plan(inputs: Inputs, subject: str, ready: Mapping[str, Sequence[Attempt]], writer: Rewriter) -> list[Job]:
    """Every attack with its variants, then every utility set, in the order of the tables; the same for every model.

    ready: the attempts of attacks that are given theirs, by where they come from; see stations/given.py.
    """
    jobs = [
        _attack_job(inputs, subject, attack, variant, _given(inputs, subject, attack, variant, ready), writer)
        for attack in ATTACKS.values()
        if attack.name in inputs.config.evaluation.attacks
        for variant in given.variants(inputs, attack)
    ]
    limit = inputs.config.evaluation.utility_prompts
    sets = {name: utility.spread(prompts, limit) for name, prompts in inputs.utility_sets.items() if prompts}
    return jobs + [_utility_job(inputs, subject, name, prompts) for name, prompts in sets.items()]


def note_plan(jobs: Sequence[Job], folder: epath.Path) -> None:
    """Writes down what a model is going to be asked, so that a report can say how far a run is; process 0 alone."""
    if jax.process_index() == 0:
        path, asked = plan_file(folder.parent.parent, folder.name), {job.file: len(job.items) for job in jobs}
        if not path.exists() or manifest.read(path)["asked"] != asked:
            manifest.write(path, {"asked": asked})


def _given(
    inputs: Inputs, subject: str, attack: Attack, variant: str, ready: Mapping[str, Sequence[Attempt]]
) -> Sequence[Attempt] | None:  # fmt: skip
    """The attempts that an attack is given; None where they are answers that are not there yet."""
    return given.of_answers(inputs, subject, variant) if attack.given == "answers" else ready.get(attack.given, ())


def _attack_job(
    inputs: Inputs, subject: str, attack: Attack, variant: str, ready: Sequence[Attempt] | None, writer: Rewriter
) -> Job:  # fmt: skip
    waits, ready = ready is None, ready or ()
    settings, name = attack.read_settings(inputs.config), f"{attack.name}:{variant}" if variant else attack.name
    rewrites = [rewrite for rewrite in inputs.rewrites if rewrite.form == variant] if variant and not attack.uses_rewriter else []
    prompts: dict[str, list[str]] = {}
    for rewrite in rewrites:
        prompts.setdefault(rewrite.behavior, []).append(rewrite.prompt)
    for attempt in ready:
        prompts.setdefault(attempt.behavior, []).extend([attempt.prompt, attempt.prefill])
    if attack.uses_rewriter:
        prompts |= {behavior: texts for (behavior, form), texts in rewriter.ready(inputs).items() if form == variant}
    context = Context(seed=inputs.seed, settings=settings, variant=variant, rewrites=rewrites, given=ready)
    held_out = any(rewrite.held_out for rewrite in rewrites)

    @functools.cache
    def judge_of(mesh: Any) -> Verdicts | None:  # loaded once for all batches: it may be a model
        return judges.load(inputs.headline, inputs.config, mesh) if attack.uses_judge else None

    @functools.cache
    def sampler_of(mesh: Any) -> tuple[Model, Pool]:
        return load_model(inputs.config.sampler, mesh), unselected(read(Pool, inputs.config.sampler), settings.samples)

    def attempts(behaviors: list[Behavior], victim: Victim, store: Any) -> list[Attempt]:
        judge = judge_of(victim.mesh)
        steers = functools.partial(_judged, judge, victim.spent) if judge else None
        at_work = dataclasses.replace(context, judge=steers, store=store, spent=victim.spent)
        if attack.uses_sampler:
            at_work = dataclasses.replace(at_work, sampler=functools.partial(sampler_of, victim.mesh))
        if attack.uses_rewriter:
            at_work = dataclasses.replace(at_work, rewriter=functools.partial(writer, context=at_work))
        return attack.attempts(behaviors, victim, at_work)

    def prepare(behaviors: list[Behavior]) -> None:
        if attack.asks is not None:
            writer(attack.asks(behaviors, context), context)

    targets = {behavior.id: behavior.targets[0] for behavior in inputs.eval_behaviors}

    def line(attempt: Attempt, response: str) -> answers_lib.Line:
        # Test cases of others may bring prefilled answers among their texts.
        surface = "prefill" if attempt.prefill and attack.surface == "text" else attack.surface
        found = {"method": subject, "attack": name, "surface": surface, "seed": inputs.seed, "behavior": attempt.behavior}
        found |= {"prompt": attempt.prompt, "prefill": attempt.prefill, "response": response}
        return marked(found | ({"tokens": list(attempt.tokens)} if attempt.tokens else {}))

    def marked(line: answers_lib.Line) -> answers_lib.Line:
        # With the end of the turn behind it, the target is an answer that an attack can reach without giving any.
        raised = attack.raises and getattr(settings, "target_eot", True) and line["behavior"] in targets
        length = announced(line["response"], targets[line["behavior"]]) if raised else 0
        return line | ({"stub": length} if length else {})

    shaping = {key: value for key, value in dataclasses.asdict(settings).items() if key not in attack.choices}
    made_with = {"attack": name, "seed": inputs.seed, "settings": shaping, "decoding": inputs.decoding.recorded()}
    if attack.uses_judge:
        made_with |= JUDGES[inputs.headline].fingerprint(inputs.config)
    if attack.uses_rewriter:
        made_with["rewriter"] = writer.identity
    if attack.uses_sampler:
        made_with["sampler"] = given.drawn_with(inputs, unselected(read(Pool, inputs.config.sampler), settings.samples))
    about = {"made_with": made_with, "attack": name, "title": attack.title, "surface": attack.surface, "held_out": held_out}
    about |= {"curve": attack.curve, "made_targets": attack.uses_target and any(b.made_target for b in inputs.eval_behaviors)}
    # The likelihoods of a curve's points would stand in no table.
    measured = None if attack.curve else taken(inputs.config.evaluation, targets)
    return Job(
        name=name,
        file=file_name(name),
        about=about | _of_behaviors(inputs.eval_behaviors) | _refusal(inputs, measured),
        items={behavior.id: behavior for behavior in inputs.eval_behaviors},
        checksums={b.id: checksum(b.text, b.targets[0], prompts.get(b.id, [])) for b in inputs.eval_behaviors},
        attempts=attempts,
        line=line,
        slow=attack.adaptive,
        together=attack.together,
        prepare=prepare,
        marked=marked,
        waits=waits,
        measured=measured,
        release=sampler_of.cache_clear,
    )


def _of_behaviors(behaviors: Sequence[Behavior]) -> dict[str, Any]:
    """What a file of answers tells of its behaviors, for judges and tables that read nothing else."""
    found: dict[str, Any] = {"targets": {behavior.id: behavior.targets[0] for behavior in behaviors}}
    if any(behavior.category for behavior in behaviors):
        found["categories"] = {behavior.id: behavior.category for behavior in behaviors}
    if by_hash := [behavior.id for behavior in behaviors if behavior.by_hash]:
        found["by_hash"] = by_hash
    return found


def _refusal(inputs: Inputs, measured: Any) -> dict[str, str]:
    """The sentence whose likelihood is measured, where it is: a file has those of one."""
    return {"refusal": inputs.config.evaluation.refusal} if measured else {}


def _judged(judge: Verdicts, spent: dict[str, float], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """The verdicts that steer an attack, with the operations of a judge that is a local model among what the attack has spent."""
    verdicts = judge(exchanges)
    if operations := sum(verdict.flops for verdict in verdicts):
        spent["judge_flops"] = spent.get("judge_flops", 0.0) + operations
    return verdicts


def _utility_job(inputs: Inputs, subject: str, name: str, prompts: Sequence[UtilityPrompt]) -> Job:
    items = {prompt.id: prompt for prompt in prompts}

    def attempts(asked: list[UtilityPrompt], victim: Victim, store: Any) -> list[Attempt]:
        del victim, store
        return [Attempt(prompt.id, prompt.prompt, prompt.response) for prompt in asked]

    def line(attempt: Attempt, response: str) -> answers_lib.Line:
        prompt = items[attempt.behavior]
        exact = response.split() == prompt.response.split() if prompt.response else None
        found = {"method": subject, "set": name, "seed": inputs.seed, "id": prompt.id, "form": prompt.form, "prompt": prompt.prompt}
        return found | {"expected": prompt.response, "response": response, "exact": exact}

    measured, made_with = taken(inputs.config.evaluation, {}), {"set": name, "seed": inputs.seed, "decoding": inputs.decoding.recorded()}
    return Job(
        name=f"utility {name}",
        file=f"utility/{name}",
        about={"made_with": made_with, "set": name, **_refusal(inputs, measured)},
        items=items,
        checksums={prompt.id: checksum(prompt.prompt, prompt.response, prompt.form) for prompt in prompts},
        attempts=attempts,
        line=line,
        slow=False,
        measured=measured,
    )


def what_is_missing(job: Job | measure.Measure, folder: epath.Path) -> list[str]:
    """The ids that are not answered yet; every process must ask. No model is needed to know.

    Raises ValueError when the file was made with other settings, or a behavior that is done was asked for in other words.
    """
    if isinstance(job, Job) and job.waits:
        return list(job.items)
    found = answers_lib.read(folder / job.file)
    if found.about:
        remedy = "delete that file to answer again, or use another --workdir"
        made_with, wanted = (_by_content(about["made_with"]) for about in (found.about, job.about))
        provenance.compare(f"{found.stem}.json", made_with, wanted, remedy)
        if {"refusal"} <= found.about.keys() & job.about.keys():
            kept, now = ({"refusal": about["refusal"]} for about in (found.about, job.about))
            provenance.compare(f"{found.stem}.json", kept, now, remedy)
        shared = {item: job.checksums[item] for item in job.items if item in found.done}
        provenance.compare(f"{found.stem}.json", found.done, shared, f"the text was edited since; {remedy}", name="the checksum of ")
    there = sharding.agreed([item in found.done for item in job.items])
    missing = [item for item, done in zip(job.items, there) if not done]
    if not missing and found.about.get("asked") != list(job.items):
        found.about["asked"] = list(job.items)
        answers_lib.write(found)
    return missing


def _by_content(made_with: dict[str, Any]) -> dict[str, Any]:
    """What a file was made with, its models known by the content of their folders alone: these may be renamed."""
    inside = {key: _by_content(value) for key, value in made_with.items() if key == "rewriter"}
    return made_with | inside | ({"model": content(made_with["model"])} if "model" in made_with else {})


def answer(job: Job, missing: list[str], folder: epath.Path, victim: Victim, weights: str, clock: Clock, name: str) -> None:
    """Makes and answers a job's attempts, batch of behaviors by batch, and saves each."""
    found = answers_lib.read(folder / job.file)
    if found.about:
        remedy = "it holds answers of other weights; delete it to answer again, or use another --workdir"
        provenance.compare(f"{found.stem}.json", {"weights": found.about["weights"]}, {"weights": weights}, remedy)
    cost = {"answers": 0, "flops": 0.0, "seconds": 0.0} | found.about.get("cost", {})  # of earlier calls
    sentence = {key: value for key, value in found.about.items() if key == "refusal"}  # of lines that earlier calls measured
    found.about = sentence | job.about | {"weights": weights, "asked": list(job.items), "done": dict(found.done)}
    found.lines = [job.marked(line) for line in found.lines]  # one way of judging in a file, also where an earlier version began it
    rank, size = {item: place for place, item in enumerate(job.items)}, len(missing) if job.together else victim.decoding.batch_size
    for start in range(0, len(missing), size):
        batch, before, started = missing[start : start + size], dict(victim.spent), time.monotonic()
        store = FileStore(folder / f"{job.file}.progress.npz", batch)
        attempts = job.attempts([job.items[item] for item in batch], victim, store)

        def progress(done: int, total: int = len(attempts), start: int = start) -> None:
            if done < total and clock.quiet_for(10.0):
                logging.info("%s: %d/%d behaviors, %d/%d attempts, %s", name, start, len(missing), done, total, clock.left())

        # What is answered is kept within the batch, too: best-of-N has thousands of answers to one.
        part = FileStore(folder / f"{job.file}.answered.npz", batch)
        texts = answered(victim, attempts, part, [found.about["made_with"], weights], progress, whole=job.measured is not None)
        spent = {kind: number - before.get(kind, 0) for kind, number in victim.spent.items() if number != before.get(kind)}
        spent["seconds"] = round(time.monotonic() - started, 2)
        measured = job.measured(attempts, victim) if job.measured else [{}] * len(attempts)
        found.lines += [job.line(attempt, text) | more for attempt, text, more in zip(attempts, texts, measured)]
        found.lines.sort(key=lambda line: rank.get(answers_lib.item_of(line), len(rank)))
        found.about["done"] |= {item: job.checksums[item] for item in batch}
        cost = {kind: cost.get(kind, 0) + spent.get(kind, 0) for kind in cost | spent}
        found.about["cost"] = cost
        answers_lib.write(found)
        store.clear()
        part.clear()
        clock.note(job.slow, len(batch))
    job.release()
    logging.info("%s: %d answers; %s", name, len(found.asked), clock.left())


def fingerprint(model: Model) -> str:
    """A checksum of a sample of every weight, spread over all of its rows, columns and layers."""
    samples = [leaf[tuple(slice(None, None, max(1, size // 8)) for size in leaf.shape)] for leaf in jax.tree.leaves(model.params)]
    return f"{zlib.crc32(b''.join(sharding.on_host(sample).astype(np.float32).tobytes() for sample in samples)):08x}"
