"""How likely a model finds the harmful response and a refusal behind what an attack sends: a measure of attacks that needs no judge."""

import dataclasses
from collections.abc import Mapping, Sequence

from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim

FIELDS = ("target_nll", "refusal_nll")  # of a line of answers


def under_attack(
    attempts: Sequence[Attempt], victim: Victim, targets: Mapping[str, str], refusal: str
) -> list[dict[str, float | None]]:  # fmt: skip
    """Per attempt the negative log-likelihood of its behavior's target and of the refusal, in nats per token, the end of the turn left out.

    Both stand behind the attempt's prompt with its perturbation and its prefilled beginning. A target that begins with what is prefilled
    is measured from there on; None where nothing of it is left. What this costs is not the attack's: the victim counts none of it.
    """
    measuring = dataclasses.replace(victim, spent={"answers": 0, "flops": 0.0})
    texts = {"target_nll": [targets[attempt.behavior].removeprefix(attempt.prefill).strip() for attempt in attempts]}
    texts["refusal_nll"] = [refusal] * len(attempts)
    found: list[dict[str, float | None]] = [{} for _ in attempts]
    for field in FIELDS:
        asked = [dataclasses.replace(attempt, target=text, target_eot=False) for attempt, text in zip(attempts, texts[field])]
        for line, text, value in zip(found, texts[field], measuring.log_likelihood(asked)):
            line[field] = round(-value, 6) if text else None
    return found
