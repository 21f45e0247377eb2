"""How far a run is, from its files: trainings, answers and verdicts per model and seed, and what is left."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest
from dat_jax.methods import METHODS
from dat_jax.report import judging
from dat_jax.report.results import Results
from dat_jax.report.wording import title

EVERY = 60  # seconds after which a page of a run that goes on loads itself anew


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that a run does for a model and seed."""

    what: str  # training | answers | verdicts
    method: str
    seed: int
    done: int  # steps, or files of answers (an attack with its variant, or a utility set)
    total: int
    seconds_left: float | None = None  # of a training, by its own pace


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a workdir is, and when this was looked up."""

    steps: Sequence[Step]
    working: str = ""  # the process that works in the workdir now; "" nobody
    written: str = ""  # UTC

    @property
    def partial(self) -> bool:
        """Whether anything is missing that the run was asked for."""
        return any(step.done < step.total for step in self.steps)


def read(workdir: epath.PathLike, flat: Mapping[str, Any], results: Results, name: str = "") -> list[Step]:
    """Returns the steps that config.json and the plans of the evaluation name; those that nobody wrote down are left out.

    flat: the content of config.json, with dotted keys. name: the workdir's in a comparison, whose results these are.
    """
    steps = []
    for seed in flat.get("seeds", results.seeds):
        folder = epath.Path(workdir) / f"seed_{seed}"
        for model in answers_lib.models_of(flat):
            if model in METHODS and METHODS[model].trains and "training.steps" in flat:
                steps.append(_training(folder, model, seed, flat, results, f"{name}/{model}" if name else model))
            planned = _planned(folder, model)
            if planned:
                found = answers_lib.read_all(folder / "answers" / model)
                there = {str(one.stem.relative_to(folder / "answers" / model)): one for one in found}
                whole = [name for name, items in planned.items() if name in there and len(there[name].done) >= items]
                steps.append(Step("answers", model, seed, len(whole), len(planned)))
                judge = (results.judges or flat.get("evaluation.judges") or [""])[0]
                judged = judging.judged([judge], folder / "answers" / model, [there[name] for name in whole])
                # A judge of attacks alone leaves the utility sets to another one.
                able = [(one, lines) for one, lines in judged if "attack" in one.about]
                total = sum(not name.startswith("utility/") for name in planned)
                steps.append(Step("verdicts", model, seed, sum(bool(lines) or not one.lines for one, lines in able), total))
    return steps


def plan_file(folder: epath.Path, model: str) -> epath.Path:
    """The file in which the evaluation says what it is going to ask a model; folder: of the seed."""
    return folder / "answers" / f"{model}.plan.json"


def steps_file(folder: epath.Path, method: str) -> epath.Path:
    """The file in which a training says how many steps it will take, where config.training.flops decides that; folder: of the seed."""
    return folder / method / "plan.json"


def _planned(folder: epath.Path, model: str) -> dict[str, int]:
    path = plan_file(folder, model)
    return manifest.read(path)["asked"] if path.exists() else {}


def _training(folder: epath.Path, method: str, seed: int, flat: Mapping[str, Any], results: Results, column: str) -> Step:
    plan, lines = steps_file(folder, method), results.metrics.get((column, seed), [])
    total = manifest.read(plan)["steps"] if flat.get("training.flops") and plan.exists() else flat["training.steps"]
    if (folder / method / "finished.json").exists():
        return Step("training", method, seed, total, total)
    done = lines[-1]["step"] if lines else 0
    speeds = [line["tokens_per_second"] for line in lines[-50:] if line.get("tokens_per_second")]
    names = ("data.adversarial_rows", "data.utility_rows", "data.prompt_length", "data.response_length")
    if not speeds or any(name not in flat for name in names):
        return Step("training", method, seed, min(done, total), total)
    adversarial, utility, prompt, response = (flat[name] for name in names)
    tokens = (2 * adversarial + utility) * (prompt + response)  # positions of all rows, padding too, as tokens_per_second counts them
    left = (total - done) * tokens / statistics.median(speeds)
    return Step("training", method, seed, min(done, total), total, round(left, 1))


def sentences(progress: Progress) -> list[str]:
    """What is done and what is missing, in words; [] where everything is done."""
    if not progress.partial:
        return []
    said = []
    for what, one, verb in (
        ("training", "training", "finished"),
        ("answers", "attack or utility set", "answered"),
        ("verdicts", "attack", "judged"),
    ):
        steps = [step for step in progress.steps if step.what == what]
        if not steps:
            continue
        if what == "training":
            done, total = sum(step.done == step.total for step in steps), len(steps)
        else:
            done, total = sum(step.done for step in steps), sum(step.total for step in steps)
        plural = "attacks and utility sets" if what == "answers" else f"{one}s"
        said.append(f"{done:,} of {total:,} {plural} {verb}.")
        begun = [step for step in steps if 0 < step.done < step.total]
        said += [_begun(step) for step in begun]
    seeds = {step.seed for step in progress.steps}
    missing = {step.seed for step in progress.steps if step.done < step.total}
    if len(seeds) > 1:
        said.append(f"{len(seeds - missing)} of {len(seeds)} seeds done.")
    return said


def _begun(step: Step) -> str:
    name = f"{title(step.method)}, seed {step.seed}"
    if step.what != "training":
        return f"{name}: {step.done} of {step.total} {'answered' if step.what == 'answers' else 'judged'}."
    left = "" if step.seconds_left is None else f", about {duration(step.seconds_left)} left"
    return f"{name}: step {step.done:,} of {step.total:,}{left}."


def duration(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
