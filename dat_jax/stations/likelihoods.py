"""How likely a model finds the harmful response and a refusal behind what is sent to it: measures of attacks that need no judge."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim

Fields = dict[str, float | None]  # of a line of answers: target_nll, refusal_nll


def taken(evaluation: ConfigDict, targets: Mapping[str, str]) -> Callable[[Sequence[Attempt], Victim], list[Fields]] | None:
    """What is measured of attempts on these behaviors, or of harmless prompts where there are no targets; None by default."""
    if "attacks" not in evaluation.measures:
        return None
    return lambda attempts, victim: under_attack(attempts, victim, targets, evaluation.refusal)


def under_attack(attempts: Sequence[Attempt], victim: Victim, targets: Mapping[str, str], refusal: str) -> list[Fields]:
    """Per attempt the negative log-likelihood of its behavior's target and of the refusal, in nats per token, the end of the turn left out.

    Both stand behind the attempt's prompt with its perturbation and its prefilled beginning. A target that begins with what is prefilled
    is measured from there on; None where nothing of it is left. Without targets the refusal alone is measured. What this costs is not the
    attack's: the victim counts none of it.
    """
    measuring = dataclasses.replace(victim, spent={"answers": 0, "flops": 0.0})
    texts = {"refusal_nll": [refusal] * len(attempts)}
    if targets:
        texts["target_nll"] = [targets[attempt.behavior].removeprefix(attempt.prefill).strip() for attempt in attempts]
    found: list[Fields] = [{} for _ in attempts]
    for field, wanted in texts.items():
        asked = [dataclasses.replace(attempt, target=text, target_eot=False) for attempt, text in zip(attempts, wanted)]
        for line, text, value in zip(found, wanted, measuring.log_likelihood(asked)):
            line[field] = round(-value, 6) if text else None
    return found
