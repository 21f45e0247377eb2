"""Answers with their verdicts: one judge's for the rates, several judges' side by side, and how far two of them agree."""

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest
from dat_jax.data.answers import Answers, Line, answer_checksum
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import UNPARSED, UNSURE
from dat_jax.report import html, intervals, statistics
from dat_jax.report.wording import WORST, label, title, worst_cases

CLASSIFIERS = ("harmbench", "harmbench_val")  # judges of HarmBench's, before the preset
Runs = Mapping[tuple[str, int], Sequence[Answers]]  # (method, seed) -> its files of answers


def present(workdirs: Sequence[Sequence[epath.Path]], order: Sequence[str]) -> list[str]:
    """The names of the judges whose verdicts are in every workdir, in the given order, others after them.

    workdirs: of each the folders of its seeds.
    """
    names: set[str] | None = None
    for folders in workdirs:
        markers = [marker for folder in folders for marker in _markers(folder / "verdicts")]
        found = {manifest.load(path, "delete that folder to judge again").content["judge"] for path in markers}
        names = found if names is None else names & found
    return sorted(names or (), key=lambda name: (order.index(name) if name in order else len(order), name))


def _markers(folder: epath.Path) -> list[epath.Path]:
    """What says which judge each folder of verdicts is of; ValueError where one is gone."""
    markers = [path / "judge.json" for path in (sorted(folder.iterdir()) if folder.is_dir() else []) if path.is_dir()]
    for marker in markers:
        answers_lib.require_judge(marker)
    return [marker for marker in markers if marker.exists()]


def check_answered(folders: Iterable[epath.Path]) -> None:
    """Raises ValueError naming a file of answers that is gone, with its manifest, and was judged before; folders: SEED/answers/MODEL."""
    for seed in sorted({folder.parent.parent for folder in folders}):
        for subject in (path for marker in _markers(seed / "verdicts") for path in sorted(marker.parent.iterdir()) if path.is_dir()):
            answers = seed / "answers" / subject.name
            there = {stem.relative_to(answers) for stem in answers_lib.stems(answers)}
            for stem in answers_lib.stems(subject):
                name = stem.relative_to(subject)
                if name not in there and (stem.parent / f"{stem.name}.json").exists():
                    raise ValueError(
                        f"{answers / name}.jsonl is gone, and {stem}.jsonl judged it: answers were lost; run "
                        "--mode=evaluate,judge to answer again, or delete the verdicts too"
                    )


def judged(judges: Sequence[str], folder: epath.Path, answers: Sequence[Answers]) -> list[tuple[Answers, list[Line]]]:
    """Each file of answers with its lines and their labels and scores; without lines where one of them is not judged yet.

    folder: of the model's answers, SEED/answers/MODEL. Attacks have the first judge's labels. So have harmless prompts where it knows
    them; otherwise they have those of the first judge that has judged them.
    """
    folders = [verdicts_of(judge, folder) for judge in judges]
    found = []
    for one in answers:
        able = folders if "set" in one.about else folders[:1]
        found.append((one, next((lines for folder in able if (lines := _lines(folder, one))), [])))
    return found


def verdicts_of(judge: str, folder: epath.Path) -> epath.Path:
    """A judge's folder of verdicts on the answers in SEED/answers/MODEL."""
    return folder.parent.parent / "verdicts" / answers_lib.file_name(judge) / folder.name


def _lines(folder: epath.Path, answers: Answers) -> list[Line]:
    verdicts = answers_lib.read_verdicts(answers_lib.verdicts_stem(folder, answers), required=True)
    found = [(line, verdicts.get(answer_checksum(line))) for line in answers.asked]
    if any(verdict is None for _, verdict in found):
        return []
    kept = ("label", "score", "class", "flops")
    return [line | {key: verdict[key] for key in kept if key in verdict} for line, verdict in found if verdict]


def several(
    judges: Sequence[str],
    folders: Mapping[tuple[str, int], epath.Path],
    runs: Runs,
    broken_by_attack: Callable[..., dict[str, dict[str, bool]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rates and mean scores of each judge, and the agreement of each two; folders: of each run's answers.

    A row has its answers, those that were not parsed, and two rates: `rate` as if none of these were compliance, `highest` as if all were.
    """
    rows, labels = [], {judge: dict[tuple, str]() for judge in judges}
    for judge, ((method, seed), answers) in itertools.product(judges, runs.items()):
        folder = verdicts_of(judge, folders[method, seed])
        attacked = [(found, _lines(folder, found)) for found in answers if "attack" in found.about]
        lines = {found.about["attack"]: lines for found, lines in attacked if lines and not found.about.get("curve")}
        outcomes, highest = broken_by_attack(lines), broken_by_attack(lines, ("comply", UNPARSED))
        for attack, found in outcomes.items():
            low, high = intervals.wilson(sum(found.values()), len(found))
            row = {"judge": judge, "method": method, "attack": attack, "seed": seed, "behaviors": len(found), "broken": sum(found.values())}
            row |= {"rate": sum(found.values()) / len(found), "low": low, "high": high}
            scores = [line["score"] for line in lines.get(attack, ())]
            row |= {"score": sum(scores) / len(scores) if scores else None, "highest": sum(highest[attack].values()) / len(found)}
            counted = [line for name, of in lines.items() for line in of if attack in (name, *worst_cases(line["surface"]))]
            unparsed = sum(line["label"] == UNPARSED for line in counted)
            unsure = sum(line.get("class") == UNSURE for line in counted)
            rows.append(row | {"answers": len(counted), "unparsed": unparsed, "unsure": unsure})
        for attack, judged_lines in lines.items():
            labels[judge] |= {(method, seed, attack, number): line["label"] for number, line in enumerate(judged_lines)}
    pairs = itertools.combinations((judge for judge in judges if judge not in JUDGES or JUDGES[judge].attacks), 2)
    return rows, [agreement(first, second, labels[first], labels[second]) for first, second in pairs]


def classes(judges: Sequence[str], folders: Mapping[tuple[str, int], epath.Path], runs: Runs) -> list[dict[str, Any]]:
    """Per judge that has classes of its own, model, harmless set and seed: how many answers are of each, and how many were not parsed.

    folders: of each run's answers.
    """
    found = []
    for judge, ((method, seed), answers) in itertools.product(judges, runs.items()):
        kinds = JUDGES[judge].kinds if judge in JUDGES else ()
        folder = verdicts_of(judge, folders[method, seed])
        for one in answers if kinds else ():
            lines = _lines(folder, one) if "set" in one.about else []
            if lines:
                counts = {kind: sum(line.get("class") == kind for line in lines) for kind in kinds}
                row = {"judge": judge, "method": method, "set": one.about["set"], "seed": seed, "prompts": len(lines)}
                found.append(row | {"classes": counts, "unparsed": sum(line["label"] == UNPARSED for line in lines)})
    return found


def not_parsed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per judge, method and attack over the seeds: how many answers were not parsed, and what attack success is at the least and the most.

    At the least none of these answers is compliance, at the most all of them are. Where all were parsed there is no row.
    """
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["judge"], row["method"], row["attack"]), []).append(row)
    return [
        {"judge": judge, "method": method, "attack": attack, "answers": sum(row["answers"] for row in of), "unparsed": unparsed}
        | {"lowest": sum(row["rate"] for row in of) / len(of), "highest": sum(row["highest"] for row in of) / len(of)}
        for (judge, method, attack), of in found.items()
        if (unparsed := sum(row["unparsed"] for row in of))
    ]


def not_sure(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Classifiers that gave other tokens than their answers much probability, in sentences: such a folder may not be the classifier."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["attack"] == WORST:
            of = found.setdefault(row["judge"], [0, 0])
            of[0], of[1] = of[0] + row["unsure"], of[1] + row["answers"]
    return [
        f"{judge}: for {unsure:,} of {answers:,} answers P(Yes) + P(No) is off 1 by more than 0.1. Where these are many, its folder is not "
        "the published classifier."
        for judge, (unsure, answers) in found.items()
        if unsure
    ]


def notes(
    unparsed: Sequence[Mapping[str, Any]], judged_by_run: Mapping[Any, Sequence[tuple[Answers, Sequence[Line]]]], judges: Sequence[str]
) -> list[str]:
    """What was not parsed, and who judged the harmless prompts where the first judge does not know them, in sentences."""
    said = [
        f"{row['judge']}, {title(row['method'])}: {row['unparsed']:,} of {row['answers']:,} answers were not parsed. {label(WORST)}: "
        f"{100 * row['lowest']:.1f} % if none of them is compliance, as all other numbers have it, {100 * row['highest']:.1f} % if all are."
        for row in unparsed
        if row["attack"] == WORST
    ]
    by_hash = {id for judged in judged_by_run.values() for found, lines in judged if lines for id in found.about.get("by_hash", ())}
    if by_hash and any(judge.partition(":")[0] in CLASSIFIERS for judge in judges):
        said.append(
            f"HarmBench compares the answers to {html.count(len(by_hash), 'behavior')} with songs and books (tag hash_check) and does not "
            "ask its classifier, which was asked about them here: rates with them are not HarmBench's."
        )
    harmless = [line for judged in judged_by_run.values() for found, lines in judged if "set" in found.about for line in lines]
    if count := sum(line["label"] == UNPARSED for line in harmless):
        said.append(
            f"{count:,} of {len(harmless):,} answers to harmless prompts were not parsed; they count neither as answered nor as refused."
        )
    if judges and judges[0] in JUDGES and not JUDGES[judges[0]].harmless:
        other = next((judge for judge in judges if judge not in JUDGES or JUDGES[judge].harmless), "")
        said.append(
            f"{judges[0]} judges attacks alone; answers to harmless prompts were judged by {other}."
            if harmless
            else f"{judges[0]} judges attacks alone: name a judge of harmless prompts behind it in evaluation.judges to count utility."
        )
    return said


def agreement(first: str, second: str, one: Mapping[Any, str], other: Mapping[Any, str]) -> dict[str, Any]:
    """How often two judges agree on whether an answer is compliance, and Cohen's kappa (1960), which is 0 where chance would do as well.

    kappa is None where both judges gave one and the same label throughout. Answers that one of them could not parse are left out.
    """
    both = [key for key in one.keys() & other.keys() if UNPARSED not in (one[key], other[key])]
    pairs = [(one[key] == "comply", other[key] == "comply") for key in both]
    agree = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    kappa = statistics.cohen(collections.Counter(pairs))
    return {"first": first, "second": second, "answers": len(pairs), "agree": agree, "kappa": kappa}
