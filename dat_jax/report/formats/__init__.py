"""A workdir's answers and verdicts in other tools' formats. A new one is a file here and a row in FORMATS.

Only what the report reads is read: the answers with their manifests, and the headline judge's verdicts.
"""

import collections
import dataclasses
import datetime
from collections.abc import Callable, Sequence

from etils import epath

from dat_jax.data import answers as answers_lib
from dat_jax.data import files
from dat_jax.data.answers import Answers, Line
from dat_jax.methods import METHODS
from dat_jax.report import judging, results
from dat_jax.report.formats import adversariallm, harmbench, inspect, jailbreakbench
from dat_jax.report.formats.format import Format, Tried

FORMATS: dict[str, Format] = {
    format.name: format for format in (harmbench.FORMAT, adversariallm.FORMAT, jailbreakbench.FORMAT, inspect.FORMAT)
}
# Attacks that send the behavior's own text, or perturb its embeddings: what the text is, is known from them.
VERBATIM = ("direct", "direct_samples", "prefill", "embedding")


def write(workdir: epath.PathLike, names: Sequence[str], say: Callable[[str], None] = lambda sentence: None) -> None:
    """Writes WORKDIR/formats/<name>/seed_<s>/ for each name, in place of what was there; `say` hears how many answers are in it.

    Points of curves are left out, as no worst case counts them, and so are files of which an answer is not judged yet.

    Raises ValueError where nothing was judged.
    """
    tried = judged(epath.Path(workdir))
    for format in (FORMATS[name] for name in names):
        folder, written = epath.Path(workdir) / "formats" / format.name, 0
        left_out: collections.Counter[str] = collections.Counter()
        folder.rmtree(missing_ok=True)  # answers that are no longer asked for would stay
        for seed in sorted({found.seed for found in tried}):
            kept = []
            for found in (found for found in tried if found.seed == seed):
                reasons = [format.lacks(found, line) for line in found.lines]
                left_out.update(filter(None, reasons))
                lines = [line for line, reason in zip(found.lines, reasons) if not reason]
                kept += [dataclasses.replace(found, lines=lines)] if lines else []
            if kept:
                format.write(folder / f"seed_{seed}", kept)
            written += sum(len(found.lines) for found in kept)
        without = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        say(f"{folder}: {written} answers" + (f"; left out: {without}" if without else ""))


def judged(workdir: epath.Path) -> list[Tried]:
    """Every file of answers to an attack that the headline judge has judged, in the order of the report."""
    config = workdir / "config.json"
    settings = files.read_json(str(config)) if config.exists() else {}
    runs = results.runs_of(workdir, list(dict.fromkeys([*METHODS, *answers_lib.models_of(settings)])))
    judges = judging.present(results.by_workdir(runs), settings.get("evaluation.judges", []))
    if not judges:
        raise ValueError(f"{workdir}: no judged answers there (no seed_<s>/verdicts/<judge>/); run --mode=evaluate,judge first")
    found: list[Tried] = []
    requests: dict[int, dict[str, str]] = {}
    for (model, seed), folder in runs.items():
        answers = [one for one in map(answers_lib.read, answers_lib.stems(folder)) if "attack" in one.about]
        known = requests.setdefault(seed, {})  # of a seed and not of a model: all models are asked about the same behaviors
        known |= {line["behavior"]: line["prompt"] for one in answers if one.about["attack"] in VERBATIM for line in one.lines}
        tried = [
            _tried(model, seed, judges[0], one, lines, known)
            for one, lines in judging.judged(judges[:1], folder, answers)
            if lines and not one.about.get("curve")
        ]
        found += sorted(tried, key=lambda one: results.attack_order(one.attack))
    return found


def _tried(model: str, seed: int, judge: str, one: Answers, lines: list[Line], requests: dict[str, str]) -> Tried:
    spent = one.about.get("cost", {})
    written = (one.stem.parent / f"{one.stem.name}.jsonl").stat().mtime
    return Tried(
        model=model,
        attack=one.about["attack"],
        seed=seed,
        judge=judge,
        made_with=one.about.get("made_with", {}),
        when=datetime.datetime.fromtimestamp(written or 0, datetime.UTC),
        lines=lines,
        requests=requests,
        places={id: place for place, id in enumerate(one.about["asked"])},
        categories=one.about.get("categories", {}),
        targets=one.about.get("targets", {}),
        per_answer={kind: spent[kind] / len(one.lines) for kind in ("flops", "seconds") if kind in spent},
    )
