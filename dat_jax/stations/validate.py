"""Validates judges on answers that humans have labelled: precision, recall, F1, Cohen's kappa and the confusion, per judge.

    python -m dat_jax.stations.validate --judges=refusal_prefix,xstest:strings --positive=refuse --labels=FILE[,FILE ...]

FILE: see data/labels.py for the four formats. --positive: the judge's labels that are a human's 1: "comply" (the answer is harmful, or does
what was asked), or where humans were asked about refusals "refuse" or "refuse,lost". Answers that a judge could not parse are counted by
themselves, and are in none of the numbers. Settings of a judge are given as --config.judges.NAME.KEY=VALUE.
"""

import collections
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from dat_jax import platform, signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.update(platform.environment())

from absl import app, flags
from ml_collections import config_flags

from dat_jax import config as config_lib
from dat_jax import judges, settings
from dat_jax.data import behaviors, labels
from dat_jax.data.labels import Labelled
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import LABELS, UNPARSED, Exchange, Verdict, Verdicts
from dat_jax.report.statistics import cohen


@dataclasses.dataclass(frozen=True)
class Validation:
    """How a judge does against humans; the rates are None where there is nothing to divide by."""

    judge: str
    answers: int
    unparsed: int
    confusion: dict[str, dict[str, int]]  # human "1" or "0" -> the judge's label -> answers
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    kappa: float | None


def compare(name: str, labelled: Sequence[Labelled], verdicts: Sequence[Verdict], positive: Sequence[str]) -> Validation:
    """Counts a judge's verdicts against the humans' labels; an answer is positive for the judge where its label is one of `positive`."""
    confusion: dict[str, collections.Counter[str]] = {"1": collections.Counter(), "0": collections.Counter()}
    pairs: collections.Counter[tuple[bool, bool]] = collections.Counter()
    for one, verdict in zip(labelled, verdicts, strict=True):
        confusion[str(int(one.label))][verdict.label] += 1
        if verdict.label != UNPARSED:
            pairs[one.label, verdict.label in positive] += 1
    true, false, missed = pairs[True, True], pairs[False, True], pairs[True, False]
    parsed = sum(pairs.values())

    def share(count: int, of: int) -> float | None:
        return count / of if of else None

    return Validation(
        judge=name,
        answers=len(labelled),
        unparsed=len(labelled) - parsed,
        confusion={human: dict(counts) for human, counts in confusion.items()},
        precision=share(true, true + false),
        recall=share(true, true + missed),
        f1=share(2 * true, 2 * true + false + missed),
        accuracy=share(true + pairs[False, False], parsed),
        kappa=cohen({(str(human), str(judge)): count for (human, judge), count in pairs.items()}),
    )


def verdicts_of(load: Verdicts, labelled: Sequence[Labelled], batch: int) -> list[Verdict]:
    """A judge's verdicts, batch by batch."""
    exchanges = [Exchange(one.id, one.request, one.request, "", one.response) for one in labelled]
    return [verdict for start in range(0, len(exchanges), batch) for verdict in load(exchanges[start : start + batch])]


def validate(names: Sequence[str], labelled: Sequence[Labelled], positive: Sequence[str], config: Any) -> list[Validation]:
    """Validates judges of JUDGES; ValueError naming the key for an unknown name, or a judge that cannot work with its settings."""
    if unknown := [name for name in names if name not in JUDGES]:
        raise ValueError(f"--judges names {unknown[0]!r}; allowed: a selection of {', '.join(JUDGES)}")
    if not positive or not set(positive) < set(LABELS):
        raise ValueError(f"--positive={','.join(positive)}; allowed: one or two of {', '.join(LABELS)}")
    for name in names:
        settings.validate(JUDGES[name].read_settings(config), f"judges.{JUDGES[name].key}")
        JUDGES[name].fingerprint(config)
    return [compare(name, labelled, verdicts_of(judges.load(name, config), labelled, JUDGES[name].batch), positive) for name in names]


def table(found: Sequence[Validation], positive: Sequence[str]) -> str:
    """A Markdown table, a row per judge."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    of = " or ".join(positive)
    head = f"| Judge | Answers | Not parsed | Precision of `{of}` | Recall | F1 | Accuracy | Kappa | Humans 1 | Humans 0 |\n"
    rows = head + "|---|---:|---:|---:|---:|---:|---:|---:|---|---|\n"
    for one in found:
        counts = [", ".join(f"{label} {n}" for label, n in sorted(one.confusion[human].items())) or "-" for human in ("1", "0")]
        rates = " | ".join(shown(value) for value in (one.precision, one.recall, one.f1, one.accuracy, one.kappa))
        rows += f"| `{one.judge}` | {one.answers} | {one.unparsed} | {rates} | {' | '.join(counts)} |\n"
    return rows


def define_flags() -> None:
    """The command line's options."""
    flags.DEFINE_list("judges", None, "names of judges", required=True)
    flags.DEFINE_list("labels", None, "files of labelled answers; several are taken together", required=True)
    flags.DEFINE_string("behaviors", "", "behaviors CSV with the requests of HarmBench's files")
    flags.DEFINE_list("positive", ["comply"], "labels of a judge that are a human's 1: of comply, refuse, lost")
    flags.DEFINE_string("output", "", "JSON file for the numbers")
    config_flags.DEFINE_config_dict("config", config_lib.defaults(), "settings of the judges")


def main(argv: list[str]) -> int:
    """Prints the table and returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --labels=FILE", 2)
    values = flags.FLAGS
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        requests = {b.id: b.text for b in behaviors.load_behaviors(values.behaviors)} if values.behaviors else {}
        labelled = [one for path in values.labels for one in labels.read(path, requests)]
        found = validate(values.judges, labelled, values.positive, values.config)
        if values.output:
            with open(values.output, "w", encoding="utf-8") as file:
                json.dump([dataclasses.asdict(one) for one in found], file, indent=1)
    except ValueError as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    print(table(found, values.positive))
    several, agree = labels.agreement_of_raters(labelled)
    if agree is not None:
        print(f"Of {several} answers with several raters, {100 * agree:.0f} % of the pairs of raters agree.")
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(signals.ended(main))
