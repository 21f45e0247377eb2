"""Verdicts: every judge of the configuration on every file of answers; nothing is answered again, and nothing judged twice.

What a judge has said is known by what it reads of an answer, whichever model or attack the answer is of: two models that refuse in the
same words are judged once. The verdicts stand beside the answers, one file for each of theirs.
"""

import collections
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from jax.experimental import multihost_utils

from dat_jax import judges, sharding
from dat_jax.attacks import ATTACKS
from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest, provenance
from dat_jax.data.answers import Answers, answer_checksum, file_name, item_of
from dat_jax.data.behaviors import Behavior
from dat_jax.diffusion.selection import JUDGED
from dat_jax.judges import JUDGES, ensemble
from dat_jax.judges.judge import LABELS, UNPARSED, Exchange, Verdict, Verdicts
from dat_jax.stations.inputs import Inputs, needs_sampler
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
        asked = {
            subject: [answers for answers in files_ if (JUDGES[name].harmless if "set" in answers.about else JUDGES[name].attacks)]
            for subject, files_ in found.items()
        }
        said = functools.cache(functools.partial(_said, name, folder, asked, inputs))
        for subject, files_ in asked.items():
            fresh = sum(_judge_file(answers, folder / subject, inputs, name, load, said) for answers in files_)
            logging.info("judge %s, %s, seed %d: %d of %d files were new", name, subject, inputs.seed, fresh, len(files_))


def check(names: Sequence[str], config: Any) -> None:
    """Raises ValueError naming the key for the first judge whose folder, file or environment is not what it needs."""
    for name in judges.needed(names, config):
        JUDGES[name].fingerprint(config)


def check_memory(stations: Sequence[str], config: Any) -> None:
    """Raises ValueError, naming the keys, where a judge that is a local model would lie in memory beside the model that it judges.

    stations: those that are going to run. The judge station itself has no other model in memory.
    """
    headline, asked = config.evaluation.judges[0], list[tuple[str, str]]()
    if "evaluate" in stations:
        steered = [name for name in config.evaluation.attacks if ATTACKS[name].uses_judge]
        asked += [(headline, f"config.evaluation.attacks names {name!r}, which a judge steers") for name in steered]
    if "train" in stations and config.training.watch_attacks:
        asked.append((headline, "config.training.watch_attacks is set, and what they break is judged while a model trains"))
    if {"sample", "train"} & set(stations) and needs_sampler(config) and config.sampler.selection in JUDGED:
        asked.append((config.sampler.judge or headline, f"config.sampler.selection is {config.sampler.selection!r}, which judges answers"))
    for name, why in asked:
        if not config.evaluation.judge_beside and (found := judges.local_models([name], config)):
            raise ValueError(
                f"{why}, and the judge {name!r} is a model in memory beside the one that it judges ({', '.join(found)}); allowed: a judge "
                "of rules, one behind an endpoint, or config.evaluation.judge_beside = True where the memory has room for both"
            )


def _said(name: str, folder: epath.Path, asked: Mapping[str, Sequence[Answers]], inputs: Inputs) -> dict[str, Verdict]:
    """What a judge has said so far, by a digest of what it read; folder: of its verdicts; asked: model -> its files of answers."""
    behaviors, found = {behavior.id: behavior for behavior in inputs.eval_behaviors}, {}
    for subject, files_ in asked.items():
        for answers in files_:
            known = read_verdicts(answers_lib.verdicts_stem(folder / subject, answers))
            for line in answers.lines if known else ():
                verdict = known.get(answer_checksum(line))
                # Of a behavior that is not asked for any more nobody knows the request that was judged.
                if verdict and ("behavior" not in line or line["behavior"] in behaviors):
                    found[_read_of(name, exchange(line, behaviors))] = verdict
    return found


def _read_of(name: str, one: Exchange) -> str:
    """A digest of what a judge reads of an exchange. The checksums in the files have 32 bits, too few for the answers of a whole run."""
    return manifest.of_json(JUDGES[name].content(one))


def _judge_file(
    answers: Answers, folder: epath.Path, inputs: Inputs, name: str, load: Callable[[], Verdicts], said: Callable[[], dict[str, Verdict]]
) -> bool:
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
    read = {key: _read_of(name, one) for key, one in new.items()}
    heard = said() if new and not judges.members(name, inputs.config) else {}  # what is made of other judges asks nobody
    again = sharding.agreed([read[key] in heard for key in new])
    known |= {key: heard[read[key]] for key, is_known in zip(new, again) if is_known and read[key] in heard}
    alike: dict[str, list[str]] = {}  # what is read -> the answers of the file that it is of
    for key, is_known in zip(new, again):
        if not is_known:
            alike.setdefault(read[key], []).append(key)
    todo, size = [keys_[0] for keys_ in alike.values()], JUDGES[name].batch
    for start in range(0, max(len(todo), 1), size):
        batch = todo[start : start + size]
        for key, verdict in zip(batch, _verdicts(batch, new, answers, folder, inputs.config, name, load) if batch else ()):
            heard[read[key]] = verdict
            known |= dict.fromkeys(alike[read[key]], verdict)
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
    return {
        key: Verdict(row["label"], row["score"], row.get("class", ""), row.get("flops", 0.0))
        for key, row in answers_lib.read_verdicts(stem).items()
    }


def _row(answer: str, verdict: Verdict) -> answers_lib.Line:
    found = {"answer": answer, "label": verdict.label, "score": verdict.score}
    return found | ({"class": verdict.kind} if verdict.kind else {}) | ({"flops": verdict.flops} if verdict.flops else {})


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
