"""Attacks whose attempts are ready before they start: jailbreak templates, infilled prompts, test cases of others, and what broke another
model.

stations/given.py makes the attempts; answering and judging them is the same as for every other attack.
"""

import dataclasses
from collections.abc import Sequence

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.data.behaviors import Behavior
from dat_jax.settings import check

PRESETS = ("64/64", "32/32", "sampler")


@dataclasses.dataclass(frozen=True)
class Templates:
    """config.attacks.templates: human-written jailbreak prompts with a place for the request."""

    file: str = ""  # the templates: JSON lines name, template; or a .yaml file or folder of PyRIT's
    count: int = 0  # templates per behavior, drawn for each by seed and id; 0: all

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"count": (self.count >= 0, "an integer >= 0 (0: all)")})


@dataclasses.dataclass(frozen=True)
class Infilling:
    """config.attacks.infilling: the masked-diffusion LM writes prompts for the target response (arXiv 2511.00203).

    Presets: "64/64" of the published code (64 tokens in 64 steps) and "32/32" of AdversariaLLM's fork, both at temperature 0, the surest
    positions first, with given tokens hidden at random in every step; "sampler": as config.sampler draws training prompts.
    """

    samples: int = 1024  # prompts per behavior
    preset: str = "64/64"
    file: str = ""  # a CSV original_prompt, inpainted_prompt that is read in place of sampling

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"samples": (self.samples >= 1, "an integer >= 1"), "preset": (self.preset in PRESETS, " | ".join(PRESETS))})


@dataclasses.dataclass(frozen=True)
class TestCases:
    """config.attacks.test_cases: what somebody else sent to a model, prompts and prefilled answers."""

    file: str = ""  # HarmBench's test_cases.json, completions or results; AdversariaLLM's run.json, or a folder of these


@dataclasses.dataclass(frozen=True)
class Replay:
    """config.attacks.replay."""

    most: int = 32  # attempts per behavior at most, the first ones in the order of the models and attacks that they come from

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"most": (self.most >= 1, "an integer >= 1")})


def attempts(behaviors: Sequence[Behavior], victim, context: Context) -> list[Attempt]:
    """Returns the attempts that are given for these behaviors."""
    del victim
    return [attempt for behavior in behaviors for attempt in context.given if attempt.behavior == behavior.id]


TEMPLATES = Attack(
    name="templates", title="Jailbreak templates", surface="text", attempts=attempts, settings=Templates, given="templates",
    choices=("file",),
)  # fmt: skip
INFILLING = Attack(
    name="infilling", title="Diffusion infilling", surface="text", attempts=attempts, settings=Infilling, given="infilling", tries=True,
    uses_target=True, choices=("file",),
)  # fmt: skip
TEST_CASES = Attack(
    name="test_cases", title="Test cases of others", surface="text", attempts=attempts, settings=TestCases, given="test_cases",
    choices=("file",),
)  # fmt: skip
REPLAY = Attack(
    name="replay", title="Replay of what broke other models", surface="prefill", attempts=attempts, settings=Replay, given="replay"
)
