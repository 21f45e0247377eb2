"""Answers with their verdicts: one judge's for the rates, several judges' side by side, and how far two of them agree."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import answers as answers_lib
from dat_jax.data import files
from dat_jax.data.answers import Answers, Line, answer_checksum
from dat_jax.report import intervals

Runs = Mapping[tuple[str, int], Sequence[Answers]]  # (method, seed) -> its files of answers


def present(workdir: epath.PathLike, seeds: Sequence[int], order: Sequence[str]) -> list[str]:
    """The names of the judges whose verdicts are there, in the given order, others after them."""
    markers = [path for seed in seeds for path in (epath.Path(workdir) / f"seed_{seed}" / "verdicts").glob("*/judge.json")]
    names = sorted({files.read_json(str(path))["judge"] for path in markers})
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def judged(folder: epath.Path, answers: Sequence[Answers]) -> list[tuple[Answers, list[Line]]]:
    """Each file of answers with its lines and their labels and scores; without lines where one of them is not judged yet."""
    return [(found, _lines(folder, found)) for found in answers]


def _lines(folder: epath.Path, answers: Answers) -> list[Line]:
    path = folder / ("utility" if "set" in answers.about else "") / f"{answers.stem.name}.jsonl"
    if not path.exists():
        return []
    verdicts = {row["answer"]: row for _, row in files.read_jsonl(str(path))}
    found = [(line, verdicts.get(answer_checksum(line))) for line in answers.asked]
    if any(verdict is None for _, verdict in found):
        return []
    return [line | {"label": verdict["label"], "score": verdict["score"]} for line, verdict in found if verdict]


def several(
    workdir: epath.PathLike, judges: Sequence[str], runs: Runs, broken_by_attack: Callable[..., dict[str, dict[str, bool]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rates and mean scores of each judge, and the agreement of each two."""
    rows, labels = [], {judge: dict[tuple, str]() for judge in judges}
    for judge, ((method, seed), answers) in itertools.product(judges, runs.items()):
        folder = epath.Path(workdir) / f"seed_{seed}" / "verdicts" / answers_lib.file_name(judge) / method
        attacked = [(found, lines) for found, lines in judged(folder, answers) if lines and "attack" in found.about]
        lines = {found.about["attack"]: lines for found, lines in attacked if not found.about.get("curve")}
        outcomes = broken_by_attack(lines)
        for attack, found in outcomes.items():
            low, high = intervals.wilson(sum(found.values()), len(found))
            row = {"judge": judge, "method": method, "attack": attack, "seed": seed, "behaviors": len(found), "broken": sum(found.values())}
            row |= {"rate": sum(found.values()) / len(found), "low": low, "high": high}
            scores = [line["score"] for line in lines.get(attack, ())]
            rows.append(row | {"score": sum(scores) / len(scores) if scores else None})
        for attack, judged_lines in lines.items():
            labels[judge] |= {(method, seed, attack, number): line["label"] for number, line in enumerate(judged_lines)}
    return rows, [agreement(first, second, labels[first], labels[second]) for first, second in itertools.combinations(judges, 2)]


def agreement(first: str, second: str, one: Mapping[Any, str], other: Mapping[Any, str]) -> dict[str, Any]:
    """How often two judges agree on whether an answer is compliance, and Cohen's kappa (1960), which is 0 where chance would do as well.

    kappa is None where both judges gave one and the same label throughout.
    """
    pairs = [(one[key] == "comply", other[key] == "comply") for key in one.keys() & other.keys()]
    count = max(len(pairs), 1)
    agree = sum(a == b for a, b in pairs) / count
    share_one, share_other = sum(a for a, _ in pairs) / count, sum(b for _, b in pairs) / count
    chance = share_one * share_other + (1 - share_one) * (1 - share_other)
    kappa = None if chance == 1 else (agree - chance) / (1 - chance)
    return {"first": first, "second": second, "answers": len(pairs), "agree": agree, "kappa": kappa}
