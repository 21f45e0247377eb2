"""Runs every attack and utility set against one model; one file per attack, written at once, so a killed run resumes at the next one."""

import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dat_jax import sharding
from dat_jax.data import files
from dat_jax.data.behaviors import Behavior
from dat_jax.evaluation import responses
from dat_jax.evaluation.attacks import rewrites as rewriting
from dat_jax.evaluation.attacks import text
from dat_jax.evaluation.attacks.rewrites import Rewrite
from dat_jax.evaluation.attacks.text import Attempt
from dat_jax.evaluation.judges import LABELS, NAMES, Judge
from dat_jax.evaluation.utility import UtilityPrompt
from dat_jax.models.huggingface import Model
from dat_jax.training.perturbation import Attack

ATTACKS = ("direct", "rewrite", "best_of_n", "prefill", "prefill+rewrite", "embedding", "embedding+rewrite")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One attack: its name, its attempts, and whether their embeddings are perturbed."""

    name: str
    attempts: list[Attempt]
    perturbed: bool


Job = tuple[str, epath.Path, Plan]  # name, file, what is to be tried


def defaults() -> ConfigDict:
    """The keys of `config.evaluation` with their defaults."""
    return ConfigDict(
        dict(
            # A selection of ATTACKS; those on rewrites stand for one attack per form.
            attacks=("direct", "rewrite", "best_of_n", "prefill", "embedding", "embedding+rewrite"),
            forms=(),  # rewrite forms that are tried; (): all of the rewrites file
            embedding_forms=(),  # forms the embedding attack is put on top of; (): the same as `forms`
            behaviors=0,  # evaluation behaviors tried, the first ones; 0: all
            utility_prompts=0,  # prompts per utility set, spread evenly over it; 0: all
            best_of_n=16,  # N, augmentations per behavior (published: up to 10,000)
            sigma=text.SIGMA,  # strength of the best-of-N augmentation, 0.4 as published
            prefill_words=5,  # words of the target that the answer is made to start with
            max_new_tokens=128,
            temperature=0.0,  # 0: greedy; one answer per attempt
            batch_size=32,  # attempts per batch; on a mesh a multiple of its data x fsdp devices
            judge="refusal_prefix",  # "refusal_prefix" | "refusal_topic" (for weak models) | "world" (exact, embedded world only)
            attack=dataclasses.asdict(Attack(steps=20, iterate="best")),  # of the embedding attacks, as config.attack
        )
    )


def validate(config: ConfigDict) -> None:
    """Raises ValueError naming the key of `config.evaluation` (the argument) whose value is not allowed, what was found and what is."""
    rules = {
        "attacks": (len(config.attacks) > 0 and set(config.attacks) <= set(ATTACKS), f"one or more of {', '.join(ATTACKS)}"),
        "behaviors": (config.behaviors >= 0, "an integer >= 0 (0: all)"),
        "utility_prompts": (config.utility_prompts >= 0, "an integer >= 0 (0: all)"),
        "best_of_n": (config.best_of_n >= 1, "an integer >= 1"),
        "sigma": (0 < config.sigma <= 1, "a number above 0 up to 1"),
        "prefill_words": (config.prefill_words >= 1, "an integer >= 1"),
        "max_new_tokens": (config.max_new_tokens >= 1, "an integer >= 1"),
        "temperature": (config.temperature >= 0, "a number >= 0"),
        "batch_size": (config.batch_size >= 1, "an integer >= 1"),
        "judge": (config.judge in NAMES, " | ".join(NAMES)),
    }
    for key, (ok, allowed) in rules.items():
        if not ok:
            raise ValueError(f"config.evaluation.{key} is {config[key]!r}; allowed: {allowed}")
    Attack(**config.attack).validate("evaluation.attack")


def plan(behaviors: Sequence[Behavior], rewrites: Sequence[Rewrite], config: ConfigDict, seed: int) -> list[Plan]:
    """Every attack with its attempts, the same for every method.

    Args:
      behaviors: evaluation behaviors.
      rewrites: of these behaviors; those of others are passed over.
      config: `config.evaluation`.
      seed: the run's seed, for best-of-N.

    Raises:
      ValueError: for a form that no rewrite has, naming the key.
    """
    known = {behavior.id for behavior in behaviors}
    rewrites = [item for item in rewrites if item.behavior in known]
    forms = _forms(rewrites, config.forms, "forms")
    rewritten = {form: text.rewritten(behaviors, rewrites, form) for form in forms}
    words = config.prefill_words
    plain = {
        "direct": [Plan("direct", text.direct(behaviors), False)],
        "rewrite": [Plan(f"rewrite:{form}", tried, False) for form, tried in rewritten.items()],
        "best_of_n": [Plan("best_of_n", text.best_of_n(behaviors, config.best_of_n, seed, config.sigma), False)],
        "prefill": [Plan("prefill", text.prefilled(text.direct(behaviors), words), False)],
        "prefill+rewrite": [Plan(f"prefill+rewrite:{form}", text.prefilled(tried, words), False) for form, tried in rewritten.items()],
        "embedding": [Plan("embedding", text.direct(behaviors), True)],
        "embedding+rewrite": [
            Plan(f"embedding+rewrite:{form}", text.rewritten(behaviors, rewrites, form), True)
            for form in _forms(rewrites, config.embedding_forms or forms, "embedding_forms")
        ],
    }
    return [attack for name in ATTACKS if name in config.attacks for attack in plain[name]]


def evaluate(
    method: str,
    seed: int,
    model: Model,
    behaviors: Sequence[Behavior],
    rewrites: Sequence[Rewrite] | None,
    utility_sets: Mapping[str, Sequence[UtilityPrompt]],
    judge: Judge,
    config: ConfigDict,
    folder: epath.PathLike,
    mesh: jax.sharding.Mesh | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Attacks the model and asks it the utility prompts; what is finished already is not done again.

    Writes folder/<attack>.jsonl (":" in the name as "-") with lines {method, attack, seed, behavior, prompt, prefill, response, label},
    folder/utility/<set>.jsonl with {method, set, seed, id, form, prompt, expected, response, label, exact}, and folder/settings.json.

    Args:
      method, seed: what the lines are labelled with; the seed also draws the best-of-N augmentations.
      model: the model under attack, LoRA merged.
      rewrites: None makes them by grammar rules.
      utility_sets: name -> prompts, as `utility.load_sets` gives them.
      config: the whole configuration (`evaluation` and `data` are used).
      folder: of this seed and method, e.g. workdir/seed_0/evaluation/dat.

    Raises:
      ValueError: when the folder holds results of other settings, behaviors or weights.
    """
    folder = epath.Path(folder)
    utility_sets = {name: spread(prompts, config.evaluation.utility_prompts) for name, prompts in utility_sets.items() if prompts}
    jobs = _jobs(behaviors, rewrites, utility_sets, config.evaluation, seed, folder)
    held_out = sorted({item.form for item in rewrites or () if item.held_out})
    _check_settings(folder / "settings.json", _settings(config, jobs, model) | {"held_out_forms": held_out})
    there = sharding.agreed([path.exists() for _, path, _ in jobs])
    todo = [job for job, done in zip(jobs, there) if not done]
    report(f"evaluate {method}, seed {seed}: {len(todo)} of {len(jobs)} attacks and utility sets to do")
    clock = _Clock()
    for index, (name, path, attack) in enumerate(todo):

        def progress(done: int, name=name, attack=attack, index=index) -> None:
            if done < len(attack.attempts) and clock.quiet_for(10.0):
                left = clock.left(todo[index:], done)
                report(f"  {method}, seed {seed}, {name}: {done}/{len(attack.attempts)} attempts, {left}")

        clock.start()
        answers = responses.respond(model, attack.attempts, decoding(config), seed, attack.perturbed, mesh, progress)
        clock.stop(attack)
        if path.parent.name == "utility":
            lines = _utility_lines(method, seed, attack.name, utility_sets[attack.name], answers, judge)
        else:
            lines = _attack_lines(method, seed, attack, answers, judge)
        if jax.process_index() == 0:
            files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        found = ", ".join(f"{label} {sum(line['label'] == label for line in lines)}" for label in LABELS)
        report(f"  {method}, seed {seed}, {name}: {found}; {clock.left(todo[index + 1 :], 0)}")


def finished(
    seed: int,
    behaviors: Sequence[Behavior],
    rewrites: Sequence[Rewrite] | None,
    utility_sets: Mapping[str, Sequence[UtilityPrompt]],
    config: ConfigDict,
    folder: epath.PathLike,
) -> bool:
    """Whether `evaluate` with these arguments would find every file there: then no model needs to be loaded. Every process must ask."""
    jobs = _jobs(behaviors, rewrites, {name: prompts for name, prompts in utility_sets.items() if prompts}, config.evaluation, seed, folder)
    return bool(sharding.agreed(all(path.exists() for _, path, _ in jobs)))


def _jobs(
    behaviors: Sequence[Behavior],
    rewrites: Sequence[Rewrite] | None,
    utility_sets: Mapping[str, Sequence[UtilityPrompt]],
    config: ConfigDict,
    seed: int,
    folder: epath.PathLike,
) -> list[Job]:
    """All attacks, then all utility sets, each with the file it is written to."""
    folder = epath.Path(folder)
    behaviors = list(behaviors)[: config.behaviors or None]
    if not behaviors:
        raise ValueError("there is no behavior to evaluate; allowed: at least one (config.data.eval_behaviors)")
    rewrites = rewriting.make_rewrites(behaviors) if rewrites is None else rewrites
    attacks = [attack for attack in plan(behaviors, rewrites, config, seed) if attack.attempts]
    jobs = [(attack.name, folder / f"{attack.name.replace(':', '-')}.jsonl", attack) for attack in attacks]
    for name, prompts in utility_sets.items():
        asked = Plan(name, [Attempt(prompt.id, prompt.prompt, prompt.response) for prompt in prompts], False)
        jobs.append((f"utility {name}", folder / "utility" / f"{name}.jsonl", asked))
    return jobs


def _forms(rewrites: Sequence[Rewrite], wanted: Sequence[str], key: str) -> list[str]:
    """The wanted forms, all when none is named; a form that no rewrite has is an error."""
    present = rewriting.forms(rewrites)
    for form in wanted:
        if form not in present:
            raise ValueError(f"config.evaluation.{key} names {form!r}; the rewrites of the evaluation behaviors have {', '.join(present)}")
    return list(wanted) or present


def spread(prompts: Sequence[UtilityPrompt], limit: int) -> list[UtilityPrompt]:
    """At most `limit` prompts, evenly spaced, so that a file sorted by form keeps all of them."""
    if not limit or limit >= len(prompts):
        return list(prompts)
    return [prompts[i] for i in np.linspace(0, len(prompts) - 1, limit).round().astype(int)]


def decoding(config: ConfigDict) -> responses.Settings:
    """The decoding settings that a whole configuration asks for."""
    return responses.Settings(
        prompt_length=config.data.prompt_length,
        response_length=config.data.response_length,
        max_new_tokens=config.evaluation.max_new_tokens,
        batch_size=config.evaluation.batch_size,
        temperature=config.evaluation.temperature,
        perturb=config.data.perturb,
        system=config.data.system,
        attack=Attack(**config.evaluation.attack),
    )


def _attack_lines(method: str, seed: int, attack: Plan, answers: Sequence[str], judge: Judge) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "attack": attack.name,
            "seed": seed,
            "behavior": attempt.behavior,
            "prompt": attempt.prompt,
            "prefill": attempt.prefill,
            "response": response,
            "label": judge(attempt.behavior, response),
        }
        for attempt, response in zip(attack.attempts, answers)
    ]


def _utility_lines(
    method: str, seed: int, name: str, prompts: Sequence[UtilityPrompt], answers: Sequence[str], judge: Judge
) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "set": name,
            "seed": seed,
            "id": prompt.id,
            "form": prompt.form,
            "prompt": prompt.prompt,
            "expected": prompt.response,
            "response": response,
            "label": judge(prompt.id, response),
            "exact": response.split() == prompt.response.split() if prompt.response else None,
        }
        for prompt, response in zip(prompts, answers)
    ]


def _settings(config: ConfigDict, jobs: Sequence[Job], model: Model) -> dict[str, Any]:
    """What finished files depend on: the settings, and check sums of all attempts and of a sample of every weight."""
    corners = [leaf[tuple(slice(0, 4) for _ in leaf.shape)] for leaf in jax.tree.leaves(model.params)]
    weights = b"".join(sharding.on_host(corner).astype(np.float32).tobytes() for corner in corners)
    data = {key: config.data[key] for key in ("prompt_length", "response_length", "perturb", "system")}
    checks = {
        "attempts": f"{zlib.crc32(repr([(name, attack) for name, _, attack in jobs]).encode()):08x}",
        "weights": f"{zlib.crc32(weights):08x}",
    }
    return json.loads(json.dumps({"evaluation": config.evaluation.to_dict(), "data": data, "checksum": checks}))


def _check_settings(path: epath.Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or compares them with those that finished files were made with."""
    if path.exists():
        found = json.loads(path.read_text())
        before, now = _flat(found), _flat(settings)
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key != "evaluation.batch_size")
        if changed:
            raise ValueError(
                f"{path.parent} holds results of another evaluation: {changed[0]} was {before.get(changed[0])!r} and is now "
                f"{now.get(changed[0])!r}; use another --workdir, or delete that folder to evaluate again"
            )
    elif jax.process_index() == 0:
        files.write_text(path, json.dumps(settings, indent=1) + "\n")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class _Clock:
    """Time left, from the seconds per attempt of the latest attack of a kind: perturbed embeddings cost many times plain text."""

    def __init__(self) -> None:
        self.pace: dict[bool, float] = {}  # perturbed -> seconds per attempt; the first one has the compilation in it
        self.started = self.spoken = time.monotonic()

    def start(self) -> None:
        self.started = time.monotonic()

    def stop(self, attack: Plan) -> None:
        self.spoken = time.monotonic()
        self.pace[attack.perturbed] = (self.spoken - self.started) / len(attack.attempts)

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing was said for so long; the question counts as speaking."""
        if time.monotonic() - self.spoken < seconds:
            return False
        self.spoken = time.monotonic()
        return True

    def left(self, jobs: Sequence[Job], done: int) -> str:
        """The time for the jobs, of whose first one `done` attempts are finished, in words."""
        if not jobs:
            return "finished"
        if done:
            self.pace[jobs[0][2].perturbed] = (time.monotonic() - self.started) / done
        attempts = {kind: sum(len(plan.attempts) for _, _, plan in jobs if plan.perturbed == kind) for kind in (False, True)}
        attempts[jobs[0][2].perturbed] -= done
        seconds = sum(count * self.pace.get(kind, 0.0) for kind, count in attempts.items())
        if not seconds:
            return "time left not known yet"
        return f"{'about' if all(kind in self.pace for kind in attempts if attempts[kind]) else 'more than'} {seconds:.0f} s left"
