"""Behaviors: what the model is asked for, the responses it must be led away from, the refusals it is led toward.

A file in one of `formats.FORMATS`, or several with commas between; a JSON file of targets; a CSV of safe responses matched by the text.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence

from dat_jax.data import files
from dat_jax.data.formats import read_requests

HASHED = "hash_check"  # HarmBench's tag of songs and books
DEFAULT_REFUSAL = "I'm sorry, but I can't help with that."
GIVEN = re.compile(r"^(?:given|based on|using)\b[^,]*,\s+", re.IGNORECASE)
QUESTION = re.compile(
    r"^(?:how (?:do|does|can|could|would|should|might) (?:i|you|we|one|someone|somebody|people)"
    r"|(?:(?:explain|describe|outline|tell me|show me|teach me)\s+)?how to)\s+",
    re.IGNORECASE,
)
MAKE = re.compile(r"^(?:write|create|develop|give|provide|make|generate|draft|compose|list|describe|outline|produce|design|publish)\b"
                  r"(?: me| us| him| her| them)?\s+(?=(?:an?|the|some|detailed|specific|instructions|step|tips)\b)",
                  re.IGNORECASE)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Behavior:
    """A request, its harmful responses y (targets) and its refusals."""

    id: str
    text: str  # the direct request, with its context where the file has one
    targets: tuple[str, ...]
    refusals: tuple[str, ...]
    category: str = ""
    made_target: bool = False  # whether the target was made from the request, as no file gave one
    context: str = ""  # what `text` begins with where the file has a context
    by_hash: bool = False  # whether HarmBench compares its answers with a song or book (tag hash_check) and asks no classifier


def joined(context: str, text: str) -> str:
    """Returns a request behind its context, in HarmBench's own way; the request as it is where there is no context."""
    return f"{context}\n\n---\n\n{text}" if context else text


def paths(files_of_behaviors: str) -> list[str]:
    """Returns the files of a config key that may name several with commas between them."""
    return [path.strip() for path in files_of_behaviors.split(",") if path.strip()]


def load_behaviors(behaviors_csv: str, targets_json: str = "", safe_responses_csv: str = "") -> list[Behavior]:
    """Reads behaviors with their targets and refusals; ValueError names file, line and key of the first fault.

    behaviors_csv, targets_json: one file or several with commas between. Without targets those of the behaviors file are taken, or else
    `affirmative` makes one. Empty and repeated targets are dropped and counted in the log: an empty target leaves nothing but the end
    of the turn to be trained away from (the public training file has 11 of them). A behavior that has none left is an error.
    """
    targets = {id: texts for path in paths(targets_json) for id, texts in _targets(path).items()}
    refusals = _refusals(safe_responses_csv)
    seen: dict[str, str] = {}
    behaviors, dropped = [], 0
    for path in paths(behaviors_csv):
        for place, request in read_requests(path):
            if request.id in seen:
                raise ValueError(f"{place}: the id {request.id!r} stands on {seen[request.id]} already; allowed: each once")
            seen[request.id] = place
            given = targets.get(request.id, [request.target] if request.target and not targets_json else None)
            if given is None and targets_json:
                raise ValueError(f"{targets_json}: no key {request.id!r}, the id of {place}")
            found = [affirmative(request.text)] if given is None else given
            kept = tuple(dict.fromkeys(t for t in found if t.strip()))
            dropped += len(found) - len(kept)
            if not kept:
                raise ValueError(f"{targets_json}, key {request.id!r}: no target with text; allowed: at least one")
            if safe_responses_csv and request.text not in refusals:
                raise ValueError(f"{safe_responses_csv}: no row whose Behavior is that of {place} ({request.text[:60]!r})")
            text = joined(request.context, request.text)
            refused = tuple(refusals.get(request.text, (request.refusal or DEFAULT_REFUSAL,)))
            by_hash = HASHED in request.tags.split(", ")
            behaviors.append(Behavior(request.id, text, kept, refused, request.category, given is None, request.context, by_hash))
    if dropped:
        logging.info("%s: dropped %d empty or repeated targets of %d behaviors", targets_json, dropped, len(behaviors))
    return behaviors


def affirmative(request: str) -> str:
    """Returns the beginning of a compliant answer made from the request, for attacks that need a target where no file gives one.

    "Write a poem about x." gives "Sure, here is a poem about x:", "Paint the x" and "How do I paint the x?" give "Sure, here is how to
    paint the x:"; as AdvBench's targets are made (Zou et al. 2023).
    """
    core = GIVEN.sub("", request.strip().splitlines()[-1].rstrip(".?! "))
    if made := MAKE.match(core):
        return f"Sure, here is {core[made.end() :]}:"
    core = QUESTION.sub("", core)
    lowered = core if core[:2].isupper() else core[:1].lower() + core[1:]
    return f"Sure, here is how to {lowered}:"


def describe_targets(behaviors: Sequence[Behavior]) -> str:
    """Returns a sentence on targets that were made from the requests; "" where the files gave all."""
    made = sum(behavior.made_target for behavior in behaviors)
    if not made:
        return ""
    return f'{made} of {len(behaviors)} behaviors came without a target; "Sure, here is ..." made from the request was used.'


def describe_refusals(behaviors: Sequence[Behavior]) -> str:
    """Returns a sentence on behaviors that have the one refusal that stands in for missing ones; "" where the files gave all."""
    same = sum(behavior.refusals == (DEFAULT_REFUSAL,) for behavior in behaviors)
    if not same:
        return ""
    return (
        f'{same} of {len(behaviors)} training behaviors came without a refusal, and all of these teach one sentence, "{DEFAULT_REFUSAL}"; '
        "config.data.safe_responses brings others."
    )


def _targets(path: str) -> dict[str, list[str]]:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}; allowed: an object {{BehaviorID: text or list of texts}}")
    targets = {}
    for id, entry in value.items():
        entry = [entry] if isinstance(entry, str) else entry
        if not isinstance(entry, list) or not all(isinstance(t, str) for t in entry):
            raise ValueError(f"{path}, key {id!r}: found {entry!r:.80}; allowed: a text or a list of texts")
        targets[id] = [files.require_text_at(f"{path}, key {id!r}", "a target", text) if text.strip() else "" for text in entry]
    return targets


def _refusals(path: str) -> dict[str, list[str]]:
    refusals: dict[str, list[str]] = {}
    if path:
        for line, row in files.read_csv(path, ("Behavior", "Safe_Response")):
            refusals.setdefault(row["Behavior"], []).append(files.require_text(path, line, "Safe_Response", row["Safe_Response"]))
    return refusals
