"""Behaviors: what the model is asked for, the responses it must be led away from, the refusals it is led toward.

Formats of HarmBench and Continuous-AdvTrain: a CSV with `Behavior` and `BehaviorID` (and `ContextString`, `Category` where present), a JSON
file of targets, a CSV of safe responses matched by the behavior's text.
"""

import dataclasses
import logging

from dat_jax.data import files

DEFAULT_REFUSAL = "I'm sorry, but I can't help with that."


@dataclasses.dataclass(frozen=True)
class Behavior:
    """A request, its harmful responses y (targets) and its refusals."""

    id: str
    text: str  # the direct request, with its context where the file has one
    targets: tuple[str, ...]
    refusals: tuple[str, ...]
    category: str = ""


def load_behaviors(behaviors_csv: str, targets_json: str, safe_responses_csv: str = "") -> list[Behavior]:
    """Reads behaviors with their targets and refusals; ValueError names file, line and key of the first fault.

    Empty and repeated targets are dropped and counted in the log: an empty target leaves nothing but the end of the turn to be trained away
    from (the public training file has 11 of them). A behavior that has none left is an error.
    """
    rows = files.read_csv(behaviors_csv, ("Behavior", "BehaviorID"))
    targets = _targets(targets_json)
    refusals = _refusals(safe_responses_csv)
    lines: dict[str, int] = {}
    behaviors, dropped = [], 0
    for line, row in rows:
        id = files.require_text(behaviors_csv, line, "BehaviorID", row["BehaviorID"])
        text = files.require_text(behaviors_csv, line, "Behavior", row["Behavior"])
        if id in lines:
            raise ValueError(f"{behaviors_csv}, line {line}: BehaviorID {id!r} stands on line {lines[id]} already; allowed: each once")
        lines[id] = line
        if id not in targets:
            raise ValueError(f"{targets_json}: no key {id!r}, the BehaviorID of {behaviors_csv}, line {line}")
        kept = tuple(dict.fromkeys(t for t in targets[id] if t.strip()))
        dropped += len(targets[id]) - len(kept)
        if not kept:
            raise ValueError(f"{targets_json}, key {id!r}: no target with text; allowed: at least one")
        if safe_responses_csv and text not in refusals:
            raise ValueError(f"{safe_responses_csv}: no row whose Behavior is that of {behaviors_csv}, line {line} ({text[:60]!r})")
        context = row.get("ContextString", "").strip()
        request = f"{context}\n\n---\n\n{text}" if context else text  # HarmBench's own way to join the two
        category = row.get("Category") or row.get("SemanticCategory") or ""
        behaviors.append(Behavior(id, request, kept, tuple(refusals.get(text, (DEFAULT_REFUSAL,))), category))
    if dropped:
        logging.info("%s: dropped %d empty or repeated targets of %d behaviors", targets_json, dropped, len(behaviors))
    return behaviors


def _targets(path: str) -> dict[str, list[str]]:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}; allowed: an object {{BehaviorID: text or list of texts}}")
    targets = {}
    for id, entry in value.items():
        entry = [entry] if isinstance(entry, str) else entry
        if not isinstance(entry, list) or not all(isinstance(t, str) for t in entry):
            raise ValueError(f"{path}, key {id!r}: found {entry!r:.80}; allowed: a text or a list of texts")
        targets[id] = entry
    return targets


def _refusals(path: str) -> dict[str, list[str]]:
    refusals: dict[str, list[str]] = {}
    if path:
        for line, row in files.read_csv(path, ("Behavior", "Safe_Response")):
            refusals.setdefault(row["Behavior"], []).append(files.require_text(path, line, "Safe_Response", row["Safe_Response"]))
    return refusals
