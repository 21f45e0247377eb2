"""Rewrites of the request: past tense, other languages, stories, one variant per form; read from a file or made by grammar rules."""

from collections.abc import Sequence
from typing import Any

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.data.behaviors import Behavior


def rewritten(behaviors: Sequence[Behavior], context: Context) -> list[Attempt]:
    """Returns every rewrite of the variant's form; behaviors without one are left out and not counted."""
    prompts: dict[str, list[str]] = {}
    for rewrite in context.rewrites:
        if rewrite.form == context.variant:
            prompts.setdefault(rewrite.behavior, []).append(rewrite.prompt)
    return [Attempt(b.id, prompt, b.targets[0]) for b in behaviors for prompt in prompts.get(b.id, ())]


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Sends each rewrite of the form."""
    del victim
    return rewritten(behaviors, context)


def every_form(settings: Any, forms: Sequence[str]) -> Sequence[str]:
    """The variants of an attack on rewrites: one per form."""
    del settings
    return forms


def chosen_forms(named: Sequence[str], forms: Sequence[str], key: str) -> Sequence[str]:
    """The forms that the setting `key` names, or all; ValueError for one that no rewrite has."""
    for form in named:
        if form not in forms:
            raise ValueError(f"{key} names {form!r}; the rewrites that are tried have {', '.join(forms)}")
    return named or forms


ATTACK = Attack(name="rewrite", title="Rewrite", surface="text", attempts=attempts, variants=every_form)
