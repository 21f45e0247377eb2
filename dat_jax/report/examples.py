"""Which attempts the report shows: per attack every behavior, those on which the models differ most first, their answers side by side."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dat_jax.report import html

SHOWN = 5  # behaviors per attack that are open with it; the others are folded
LETTERS = 4_000_000  # of all examples beyond these: a page is to be read on a phone
MARKUP = 250  # letters around an answer's own

Lines = Mapping[tuple[str, int], Mapping[str, Sequence[Mapping[str, Any]]]]  # (method, seed) -> attack -> judged attempts


def choose(methods: Sequence[str], lines: Lines, attacks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, per attack and behavior, each model's attempt with its label; of the first seed in which the model was tried on it.

    Models that got the same number of attempts on a behavior are shown the same one of them: that on which their labels differ most. Of
    other models, whose attempts were searched, the first that broke the model is shown, or the first. Where the behaviors are too many for
    a page, every attack loses as many of its last ones; `of` says how many there are.
    """
    by_attack: dict[str, list[dict[str, Any]]] = {}
    for attack in attacks:
        tried: dict[str, dict[str, list[Mapping[str, Any]]]] = {}  # behavior -> method -> attempts
        for method in methods:
            for _, seed in sorted(run for run in lines if run[0] == method):
                new: dict[str, list[Mapping[str, Any]]] = {}
                for line in lines[method, seed].get(attack, ()):
                    new.setdefault(line["behavior"], []).append(line)
                for behavior, attempts in new.items():
                    tried.setdefault(behavior, {}).setdefault(method, attempts)
        shown = {behavior: _of_behavior(by_method) for behavior, by_method in tried.items()}
        ranked = sorted(shown, key=lambda behavior: -len({a["label"] for a in shown[behavior]}))  # stable: then as they come
        by_attack[attack] = [{"attack": attack, "behavior": b, "of": len(tried), "answers": shown[b]} for b in ranked]
    return [example for examples in by_attack.values() for example in examples[: _fitting(by_attack.values())]]


def _fitting(by_attack: Collection[Sequence[Mapping[str, Any]]]) -> int:
    """How many behaviors of each attack a page has room for, SHOWN at least."""
    most, letters = max(map(len, by_attack), default=0), 0
    for place in range(SHOWN, most):
        letters += sum(_letters(examples[place]) for examples in by_attack if place < len(examples))
        if letters > LETTERS:
            return place
    return most


def _letters(example: Mapping[str, Any]) -> int:
    """About as many letters as an example has on the page, where long texts are cut."""
    texts = [answer[key] for answer in example["answers"] for key in ("prompt", "response")]
    return sum(min(len(text), html.SHOWN_LETTERS) for text in texts) + MARKUP * len(example["answers"])


def _of_behavior(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    counts = {len(attempts) for attempts in by_method.values()}
    if len(counts) == 1:
        best = max(range(counts.pop()), key=lambda at: len({attempts[at]["label"] for attempts in by_method.values()}))
        chosen = {method: attempts[best] for method, attempts in by_method.items()}
    else:
        chosen = {m: next((a for a in attempts if a["label"] == "comply"), attempts[0]) for m, attempts in by_method.items()}
    return [{"method": m} | {key: attempt[key] for key in ("prompt", "prefill", "response", "label")} for m, attempt in chosen.items()]
