"""Verdicts: every judge of the configuration on every file of answers; nothing is answered again, and nothing judged twice."""

import collections
import functools
import logging
from collections.abc import Callable

from etils import epath

from dat_jax import judges, sharding
from dat_jax.data import answers as answers_lib
from dat_jax.data import provenance
from dat_jax.data.answers import Answers, answer_checksum, file_name, item_of
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import LABELS, Exchange, Verdict, Verdicts
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import subjects

BATCH = 256  # answers that are judged between two saves


def run(inputs: Inputs, mesh) -> None:
    """Judges what is not judged yet. Every process must call; process 0 writes.

    Raises ValueError where a model was not attacked yet, or the judge has changed under its name.
    """
    requests = {behavior.id: behavior.text for behavior in inputs.eval_behaviors}
    found = {subject.name: answers_lib.read_all(inputs.folder / "answers" / subject.name) for subject in subjects(inputs, mesh)}
    if absent := next((name for name, files_ in found.items() if not files_), None):
        raise ValueError(f"{inputs.folder / 'answers' / absent}: no answers there yet; run --mode=evaluate first")
    for name in inputs.config.evaluation.judges:
        folder = inputs.folder / "verdicts" / file_name(name)
        answers_lib.require_judge(folder / "judge.json")
        provenance.claim(folder / "judge.json", JUDGES[name].fingerprint(inputs.config), "delete that folder to judge again")
        verdicts = functools.cache(lambda name=name: judges.load(name, inputs.config))  # loaded when the first answer is new
        for subject, files_ in found.items():
            name_ = f"  {subject}, seed {inputs.seed}"
            fresh = sum(_judge_file(answers, folder / subject, verdicts, requests, name_) for answers in files_)
            logging.info("judge %s, %s, seed %d: %d of %d files were new", name, subject, inputs.seed, fresh, len(files_))


def _judge_file(answers: Answers, folder: epath.Path, load: Callable[[], Verdicts], requests: dict[str, str], name: str) -> bool:
    """Writes the verdicts on one file of answers, saved after each batch; returns whether any was new."""
    if not answers.lines:
        return False
    stem = answers_lib.verdicts_stem(folder, answers)
    known = {key: Verdict(row["label"], row["score"]) for key, row in answers_lib.read_verdicts(stem).items()}
    keys = [answer_checksum(line) for line in answers.lines]
    judged = sharding.agreed([key in known for key in keys])  # process 0 may have written more by the time that another one looks
    new = {key: exchange(line, requests) for key, line, done in zip(keys, answers.lines, judged) if not done}
    if not new and len(known) == len(set(keys)):
        return False
    todo = list(new)
    for start in range(0, max(len(todo), 1), BATCH):
        batch = todo[start : start + BATCH]
        known |= dict(zip(batch, load()([new[key] for key in batch]))) if batch else {}
        rows = [{"answer": key, "label": known[key].label, "score": known[key].score} for key in keys if key in known]
        answers_lib.write_verdicts(stem, rows, answers)
    logging.info(
        "%s, %s: %s",
        name,
        answers.about.get("attack") or f"utility {answers.about['set']}",
        counts(known[key] for key in keys if key in known),
    )
    return True


def exchange(line: answers_lib.Line, requests: dict[str, str]) -> Exchange:
    """What a judge is given of a line of answers."""
    request = requests.get(line["behavior"], "") if "behavior" in line else ""
    return Exchange(item_of(line), request, line["prompt"], line.get("prefill", ""), line["response"])


def counts(verdicts) -> str:
    """How many verdicts have each label, in words."""
    found = collections.Counter(verdict.label for verdict in verdicts)
    return ", ".join(f"{label} {found[label]}" for label in LABELS)
