"""The exact measure of sampled prompts in the embedded world: which are grammatical, which are on topic, in which forms."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from dat_jax.data.prompts import PromptRecord
from dat_jax.world import grammar


def census(records: Sequence[PromptRecord]) -> dict[str, dict[str, Any]]:
    """Returns, for all samples and for the selected ones: prompts, share grammatical, share on topic, and counts per form.

    On topic: grammatical, and asking for the very request that the response answers.
    """
    return {"all": _count(records), "selected": _count([r for r in records if r.selected])}


def _count(records: Sequence[PromptRecord]) -> dict[str, Any]:
    parsed = [(grammar.parse(r.prompt), r) for r in records]
    grammatical = [(found, r) for found, r in parsed if found]
    on_topic = [found for found, r in grammatical if f"{found[0]}_{found[1]}" == r.behavior_id]
    total = max(len(records), 1)
    forms = collections.Counter(form for _, _, form in on_topic)
    return {
        "prompts": len(records),
        "grammatical": round(len(grammatical) / total, 4),
        "on_topic": round(len(on_topic) / total, 4),
        "forms": {form: forms[form] for form in (*grammar.FORMS, *grammar.HELD_OUT_FORMS)},
    }


def sentence(found: dict[str, dict[str, Any]]) -> str:
    """Returns the census in one line."""

    def part(name: str) -> str:
        counts = found[name]
        forms = [form for form in grammar.FORMS if counts["forms"][form]]
        return (
            f"{name} {counts['prompts']}: {100 * counts['grammatical']:.0f} % grammatical, {100 * counts['on_topic']:.0f} % on topic, "
            f"{len(forms)} of {len(grammar.FORMS)} forms"
        )

    return f"{part('all')}; {part('selected')}"
