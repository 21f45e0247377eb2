"""The exact measure of a prompt pool in the embedded world, for all samples and for the selected ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dat_jax.data.prompts import PromptRecord
from dat_jax.world import grammar


def census(records: Sequence[PromptRecord]) -> dict[str, dict[str, Any]]:
    """Returns, under "all" and "selected", the number of prompts and their `grammar.coverage`: shares grammatical, faithful, per form."""
    pools = {"all": records, "selected": [r for r in records if r.selected]}
    return {
        name: {"prompts": len(pool), **(grammar.coverage([(r.behavior_id, r.prompt) for r in pool]) if pool else {})}
        for name, pool in pools.items()
    }


def sentence(found: dict[str, dict[str, Any]]) -> str:
    """Returns the census in one line."""

    def part(name: str) -> str:
        counts = found[name]
        if not counts["prompts"]:
            return f"{name} 0"
        forms = [form for form in grammar.FORMS if counts[f"form:{form}"]]
        return (
            f"{name} {counts['prompts']}: {100 * counts['grammatical']:.0f} % grammatical, {100 * counts['faithful']:.0f} % on topic, "
            f"{len(forms)} of {len(grammar.FORMS)} forms"
        )

    return f"{part('all')}; {part('selected')}"
