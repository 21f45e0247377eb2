"""Which attempts the report shows: per attack those behaviors on which the models differ most, their answers side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 5  # behaviors per attack

Lines = Mapping[tuple[str, int], Mapping[str, Sequence[Mapping[str, Any]]]]  # (method, seed) -> attack -> judged attempts


def choose(methods: Sequence[str], lines: Lines, attacks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, per attack and behavior, each model's attempt with its label; of the first seed of each model.

    Models that got the same number of attempts on a behavior are shown the same one of them: that on which their labels differ most. Of
    other models, whose attempts were searched, the first that broke the model is shown, or the first.
    """
    seeds = {method: min((seed for name, seed in lines if name == method), default=None) for method in methods}
    examples = []
    for attack in attacks:
        tried: dict[str, dict[str, list[Mapping[str, Any]]]] = {}  # behavior -> method -> attempts
        for method, seed in seeds.items():
            for line in lines[method, seed].get(attack, ()) if seed is not None else ():
                tried.setdefault(line["behavior"], {}).setdefault(method, []).append(line)
        shown = {behavior: _of_behavior(by_method) for behavior, by_method in tried.items()}
        ranked = sorted(shown, key=lambda behavior: -len({a["label"] for a in shown[behavior]}))  # stable: then as they come
        examples += [{"attack": attack, "behavior": b, "of": len(tried), "answers": shown[b]} for b in ranked[:SHOWN]]
    return examples


def _of_behavior(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    counts = {len(attempts) for attempts in by_method.values()}
    if len(counts) == 1:
        best = max(range(counts.pop()), key=lambda at: len({attempts[at]["label"] for attempts in by_method.values()}))
        chosen = {method: attempts[best] for method, attempts in by_method.items()}
    else:
        chosen = {m: next((a for a in attempts if a["label"] == "comply"), attempts[0]) for m, attempts in by_method.items()}
    return [{"method": m} | {key: attempt[key] for key in ("prompt", "prefill", "response", "label")} for m, attempt in chosen.items()]
