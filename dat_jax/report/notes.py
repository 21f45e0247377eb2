"""What a reader must know of a report: gaps, trainings that collapsed or did not end, targets that no file gave, the world's censuses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import manifest
from dat_jax.data.answers import Answers
from dat_jax.report.wording import attack_order, label, title


def gaps(
    methods: Sequence[str],
    seeds: Sequence[int],
    lines: Mapping[tuple[str, int], Mapping[str, Any]],
    answers: Mapping[tuple[str, int], Sequence[Answers]],
    finished: Mapping[tuple[str, int], Mapping[str, Any]],
    trained: Iterable[tuple[str, int]],
) -> list[str]:
    """Gaps that make methods hard to compare, trainings that have collapsed or not ended, and targets that no file gave."""
    every = sorted({attack for by_attack in lines.values() for attack in by_attack}, key=attack_order)
    made = {found.about["attack"] for files_ in answers.values() for found in files_ if found.about.get("made_targets")}
    notes = []
    if made:
        shown = ", ".join(label(attack) for attack in sorted(made, key=attack_order))
        notes.append(f'Behaviors without a target were given one made from the request, "Sure, here is ..."; it steers {shown}.')
    asked = [found for files_ in answers.values() for found in files_ if found.lines and "attack" in found.about]
    answered = {found.about["attack"] for found in asked if not found.about.get("curve")}
    for attack in sorted(answered - set(every), key=attack_order):
        notes.append(f"{label(attack)} was answered and is not judged: it is left out.")
    notes += [f"{title(m)}, seed {s}: the training is not finished." for m, s in trained if (m, s) not in finished]
    for method, seed in [(method, seed) for method in methods for seed in seeds]:
        name = f"{title(method)}, seed {seed}"
        missing = [label(attack) for attack in every if attack not in lines.get((method, seed), {})]
        if (method, seed) not in lines:
            notes.append(f"{name}, was not evaluated.")
        elif missing:
            notes.append(f"{name}, lacks {', '.join(missing)}: its worst case is over fewer attacks than the others'.")
        if finished.get((method, seed), {}).get("collapsed"):
            notes.append(f"{name}: the training collapsed, the model refuses most benign prompts; its robustness says nothing.")
        notes += _chosen(name, finished.get((method, seed), {}))
    return notes


def _chosen(name: str, end: Mapping[str, Any]) -> list[str]:
    """That a training ended early, and which of its steps is evaluated where that was chosen."""
    notes = []
    if end.get("stopped"):
        notes.append(f"{name}: the training ended early, after step {end['steps']} of {end['steps_asked']}: {end['stopped']}.")
    if end.get("used") == "best":
        notes.append(f"{name}: the model is that of step {end['used_step']}, chosen by attacks on behaviors that are not evaluated.")
    if end.get("used") == "last":
        notes.append(f"{name}: no measurement was within the bound on refusals; the model is that of the last step.")
    return notes


def censuses(folders: Mapping[tuple[str, int], epath.Path]) -> list[str]:
    """What the embedded world says of the sampled prompts, per seed; nothing elsewhere."""
    return [
        f"{title_}, seed {seed}{f' of {workdir}' if workdir else ''}: {manifest.read(path)['sentence']}."
        for name, title_ in (("prompts", "Sampled prompts"), ("utility_prompts", "Sampled utility prompts"))
        for (workdir, seed), folder in folders.items()
        if (path := folder / name / "census.json").exists()
    ]
