"""Verdicts: every judge of the configuration on every file of answers; nothing is answered again, and nothing judged twice."""

import collections
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from jax.experimental import multihost_utils

from dat_jax import judges, sharding
from dat_jax.data import answers as answers_lib
from dat_jax.data import provenance
from dat_jax.data.answers import Answers, answer_checksum, file_name, item_of
from dat_jax.data.behaviors import Behavior
from dat_jax.judges import JUDGES, ensemble
from dat_jax.judges.judge import LABELS, UNPARSED, Exchange, Verdict, Verdicts
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import subjects


def run(inputs: Inputs, mesh) -> None:
    """Judges what is not judged yet. Every process must call; process 0 writes. Judges that others are made from come before those.

    Raises ValueError where a model was not attacked yet, or the judge has changed under its name.
    """
    found = {subject.name: answers_lib.read_all(inputs.folder / "answers" / subject.name) for subject in subjects(inputs, mesh)}
    if absent := next((name for name, files_ in found.items() if not files_), None):
        raise ValueError(f"{inputs.folder / 'answers' / absent}: no answers there yet; run --mode=evaluate first")
    names = judges.needed(inputs.config.evaluation.judges, inputs.config)
    check(names, inputs.config)
    for name in names:
        folder = inputs.folder / "verdicts" / file_name(name)
        answers_lib.require_judge(folder / "judge.json")
        provenance.claim(folder / "judge.json", JUDGES[name].fingerprint(inputs.config), "delete that folder to judge again")
        load = functools.cache(lambda name=name: judges.load(name, inputs.config, mesh))  # loaded when the first answer is new
        for subject, files_ in found.items():
            asked = [answers for answers in files_ if (JUDGES[name].harmless if "set" in answers.about else JUDGES[name].attacks)]
            fresh = sum(_judge_file(answers, folder / subject, inputs, name, load) for answers in asked)
            logging.info("judge %s, %s, seed %d: %d of %d files were new", name, subject, inputs.seed, fresh, len(asked))


def check(names: Sequence[str], config: Any) -> None:
    """Raises ValueError naming the key for the first judge whose folder, file or environment is not what it needs."""
    for name in judges.needed(names, config):
        JUDGES[name].fingerprint(config)


def _judge_file(answers: Answers, folder: epath.Path, inputs: Inputs, name: str, load: Callable[[], Verdicts]) -> bool:
    """Writes the verdicts on one file of answers, saved after each batch; returns whether any was new."""
    if not answers.lines:
        return False
    stem = answers_lib.verdicts_stem(folder, answers)
    known = read_verdicts(stem)
    keys = [answer_checksum(line) for line in answers.lines]
    judged = sharding.agreed([key in known for key in keys])  # process 0 may have written more by the time that another one looks
    behaviors = {behavior.id: behavior for behavior in inputs.eval_behaviors}
    new = {key: exchange(line, behaviors) for key, line, done in zip(keys, answers.lines, judged) if not done}
    # A kill between the lines and their manifest leaves lines that nothing checks, also where no answer is left to judge.
    sealed = bool(sharding.agreed((stem.parent / f"{stem.name}.json").exists()))
    if not new and len(known) == len(set(keys)) and (sealed or not known):
        return False
    todo, size = list(new), JUDGES[name].batch
    for start in range(0, max(len(todo), 1), size):
        batch = todo[start : start + size]
        known |= dict(zip(batch, _verdicts(batch, new, answers, folder, inputs.config, name, load))) if batch else {}
        rows = [_row(key, known[key]) for key in keys if key in known]
        answers_lib.write_verdicts(stem, rows, answers)
    logging.info(
        "  %s, seed %d, %s: %s",
        folder.name,
        inputs.seed,
        answers.about.get("attack") or f"utility {answers.about['set']}",
        counts(known[key] for key in keys if key in known),
    )
    return True


def _verdicts(
    batch: Sequence[str], new: Mapping[str, Exchange], answers: Answers, folder: epath.Path, config: Any, name: str,
    load: Callable[[], Verdicts],
) -> list[Verdict]:  # fmt: skip
    """A judge's verdicts on some answers; one that is made of other judges reads what they have written."""
    if not (members := judges.members(name, config)):
        return load()([new[key] for key in batch])
    folders = [folder.parent.parent / file_name(member) / folder.name for member in members]
    multihost_utils.sync_global_devices(f"{name} reads {answers.stem.name}")  # what process 0 has written
    found = [read_verdicts(answers_lib.verdicts_stem(member, answers)) for member in folders]
    rule = JUDGES[name].read_settings(config).rule
    return [ensemble.combine([verdicts[key] for verdicts in found], rule) for key in batch]


def read_verdicts(stem: epath.Path) -> dict[str, Verdict]:
    """The verdicts of a file by the answers' checksums; {} where there is none."""
    return {key: Verdict(row["label"], row["score"], row.get("class", "")) for key, row in answers_lib.read_verdicts(stem).items()}


def _row(answer: str, verdict: Verdict) -> answers_lib.Line:
    found = {"answer": answer, "label": verdict.label, "score": verdict.score}
    return found | ({"class": verdict.kind} if verdict.kind else {})


def exchange(line: answers_lib.Line, behaviors: Mapping[str, Behavior]) -> Exchange:
    """What a judge is given of a line of answers."""
    behavior = behaviors.get(line["behavior"]) if "behavior" in line else None
    request, context = (behavior.text, behavior.context) if behavior else ("", "")
    prefill = "" if "stub" in line else line.get("prefill", "")
    return Exchange(item_of(line), request, line["prompt"], prefill, answers_lib.judged(line), context)


def counts(verdicts: Iterable[Verdict]) -> str:
    """How many verdicts have each label, in words; what was not parsed is said where there is any."""
    found = collections.Counter(verdict.label for verdict in verdicts)
    shown = (*LABELS, UNPARSED) if found[UNPARSED] else LABELS
    return ", ".join(f"{label} {found[label]}" for label in shown)
